"""One YAML file per published number or demonstration; `algornn fit --config NAME` finds them by name."""
