"""What every layer shows of its fast weights: the associations that it stored, and the state that holds them."""

import pytest
import torch
from layer_table import FWM, LAYERS, D, assert_equal_up_to, first_state, gradients, layer_of, tokens
from torch import nn

from algornn import TokenNetwork
from algornn.probes import FastWeightProbe

SHOWS = [name for name in LAYERS if hasattr(LAYERS[name](D), "fast_weights")]
HOLES = torch.tensor([[True, True, False, True, True], [True, True, True, False, False], [True] * 5])
PADDING = torch.tensor([[True, True, True, True, False], [True, True, False, False, False], [True] * 5])
DELTA = {
    "delta_net", "delta_net_scaled", "delta_net_dpfp1", "delta_net_dpfp2", "delta_net_softmax", "delta_net_favor",
    "delta_rnn", "delta_lstm", "delta_mlp", "delta_delta", "recurrent_delta_net",
}  # fmt: skip
CONTROLLED = {"memory_augmented_lstm", "decomposed_fwm"}  # a Fast Weight Memory, the last part of the state
SUM = {"linear_transformer", "linear_transformer_sum", "linear_transformer_favor"}


def test_which_layers_show_their_fast_weights():
    assert {*DELTA, *SUM, *(f"fwm_{name}" for name in FWM), "tensor_product", *CONTROLLED} <= set(SHOWS)
    assert set(LAYERS) - set(SHOWS) == {
        "self_referential", "gated_fast_weights", "gru", "lstm", "lstm_forget_bias", "fast_weight_blocks"
    }  # fmt: skip


def own_states(name, layer, final):
    """The part of a layer's state that holds its associations, a state per head: ``[B * heads, K, V]``."""
    if name.startswith("delta_rnn") or name == "delta_lstm":
        return torch.cat(final[:2], 1).flatten(0, 1)
    if name in SUM or name.startswith("delta_net"):
        return final[..., : layer.head_size].flatten(0, 1)
    if name in ("delta_mlp", "delta_delta", "recurrent_delta_net"):
        return final[0].flatten(0, 1)
    if name.startswith("fast_weights_rnn") or name in CONTROLLED:
        final = final[-1]
    return final if final.dim() == 3 else final.flatten(1, 2)


def replay(name, keys, values, beta, state):
    """The associations written one by one, as the family writes them."""
    for k, v, b in zip(keys.unbind(1), values.unbind(1), beta.unbind(1), strict=True):
        read = torch.einsum("bkv,bk->bv", state, k) if name not in SUM else 0
        state = state + torch.einsum("bk,bv->bkv", k, b[:, None] * (v - read))
        if name.startswith("fwm") or name in CONTROLLED:
            state = state / state.flatten(1).norm(dim=1).clamp(min=1)[:, None, None]
    return state


@pytest.mark.parametrize("name", SHOWS)
def test_the_associations_fit_together_and_leave_the_layers_own_state(name):
    layer, x = layer_of(name), tokens(3, 5)
    mask = PADDING if name == "recurrent_delta_net" else HOLES
    state = first_state(layer, 3)
    with torch.no_grad():
        x_nan = x.masked_fill(~mask[..., None], torch.nan)
        keys, values, beta, left = layer.fast_weights(x_nan, state, mask)
        final = layer(x_nan, state, mask)[1]
    (B, N, K), V = keys.shape, values.shape[-1]
    assert (values.shape, beta.shape, left.shape) == ((B, N, V), (B, N), (B, K, V))
    assert torch.equal(left, own_states(name, layer, final))
    written = mask.repeat_interleave(B // 3, 0).repeat_interleave(N // 5, 1)
    assert not keys[~written].any()
    assert keys[written].ne(0).any(-1).all()
    assert all(z.isfinite().all() for z in (keys, values, beta))
    found = layer.fast_weights(x_nan, state, mask)
    assert all(gradient.isfinite().all() for gradient in gradients(layer, found, []))
    if name in DELTA | SUM | CONTROLLED or name.startswith("fwm"):
        for start in (state, None):
            keys, values, beta, left = layer.fast_weights(x, start, mask)
            own = torch.zeros_like(left) if start is None else own_states(name, layer, start)
            assert_equal_up_to([replay(name, keys, values, beta, own)], [left])


@pytest.mark.parametrize("name", SHOWS)
def test_without_tokens_nothing_was_written(name):
    layer = layer_of(name)
    state = first_state(layer, 2)
    keys, values, beta, left = layer.fast_weights(tokens(2, 0), state)
    assert keys.shape[1] == values.shape[1] == beta.shape[1] == 0
    assert torch.equal(left, own_states(name, layer, state))


def test_recurrent_delta_net_refuses_holes():
    with pytest.raises(ValueError, match="takes padding at the end of a sequence only"):
        layer_of("recurrent_delta_net").fast_weights(tokens(3, 5), None, HOLES)


@pytest.mark.parametrize("name", SHOWS)
def test_the_probe_of_fast_weights_takes_every_layer(name):
    torch.manual_seed(0)
    network = TokenNetwork(7, 3, LAYERS[name], embedding_size=D)
    batches = [(torch.randint(1, 7, (4, 6)), torch.randint(0, 3, (4, 6))) for _ in range(2)]

    def loss(call, batch):
        return nn.functional.cross_entropy(call(batch[0])[0].mT, batch[1])

    scalars = FastWeightProbe(loss=loss).run(network, batches).scalars
    per_token = {"tensor_product": 2}.get(name, 1)
    assert scalars["writes"] == 6 * per_token
    assert 0 < scalars["effective_rank"] <= 8
    assert 0 < scalars["write_strength"] <= 1
