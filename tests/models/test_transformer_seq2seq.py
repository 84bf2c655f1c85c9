"""The encoder-decoder Transformer: PyTorch's own decoder, cached decoding, what a target may see, sizes, errors."""

import re
from itertools import product
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils._pytree import tree_leaves, tree_map

from algornn import Transformer, TransformerSeq2Seq, UniversalTransformer
from algornn.models.attention import RelativeAttention, sinusoids

VOCAB, OUT, D, B, S, T = 7, 5, 8, 4, 6, 5
KINDS = {
    f"{positions}{'_shared' * shared}": {"positions": positions, "shared": shared}
    for positions, shared in product(("absolute", "relative", "none"), (False, True))
}
every = pytest.mark.parametrize("kind", KINDS)
MASK = torch.arange(S) < torch.tensor([[6], [3], [0], [1]])


def made(kind="relative", dtype=torch.float64, **options):
    torch.manual_seed(4)
    options = KINDS[kind] | {"encoder_layers": 2, "decoder_layers": 3} | options
    model = TransformerSeq2Seq(VOCAB, OUT, D, 2, feedforward_size=10, **options).eval().to(dtype)
    for parameter in model.parameters():
        parameter.data.add_(0.2 * torch.randn_like(parameter))
    return model


def ids(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(VOCAB, (B, S), generator=generator), torch.randint(OUT, (B, T), generator=generator)


def assert_close(found, wanted, bound=1e-10):
    assert found.shape == wanted.shape
    assert (found - wanted).norm().item() <= bound * wanted.norm().item()


def steps(model, source, target, mask=None):
    """Logits of one step after another."""
    state, logits = model.start(source, mask), []
    for token in (torch.zeros_like(target[:, 0]), *target[:, :-1].unbind(1)):
        found, state = model.step(token, state)
        logits.append(found)
    return torch.stack(logits, 1)


def count(module):
    return sum(p.numel() for p in module.parameters())


# The equations.


def copy_attention(theirs, ours):
    theirs.in_proj_weight.data = torch.cat([ours.query.weight, ours.key_value.weight]).data
    theirs.out_proj.weight.data = ours.output.weight.data
    nn.init.zeros_(theirs.in_proj_bias)
    nn.init.zeros_(theirs.out_proj.bias)


@pytest.mark.parametrize("kind", ["none", "none_shared", "absolute"])
@pytest.mark.parametrize("scaling", ["none", "TEU", "PED"])
def test_the_decoder_is_that_of_torch(kind, scaling):
    model, (source, target) = made(kind, scaling=scaling), ids()
    mask = MASK[[0, 1, 3, 3]]
    memory = model.encoder(model.source_embedding(source), None, mask)[0]
    y = model.target_embedding(torch.cat([torch.zeros(B, 1, dtype=torch.long), target[:, :-1]], 1))
    if kind == "absolute":
        p = sinusoids(torch.arange(T), y)
        y = y * (D**0.5 if scaling == "TEU" else 1) + p * (D**-0.5 if scaling == "PED" else 1)
    for n in range(3):
        block = model.decoder[n % len(model.decoder)]
        layer = nn.TransformerDecoderLayer(D, 2, 10, 0.0, batch_first=True, dtype=torch.float64)
        copy_attention(layer.self_attn, block.attention)
        copy_attention(layer.multihead_attn, block.source_attention)
        layer.linear1.load_state_dict(block.feedforward[0].state_dict())
        layer.linear2.load_state_dict(block.feedforward[-1].state_dict())
        for theirs, ours in zip(
            (layer.norm1, layer.norm2, layer.norm3), (block.attention_norm, block.source_norm, block.norm), strict=True
        ):
            theirs.load_state_dict(ours.state_dict())
        future = torch.ones(T, T, dtype=torch.bool).triu(1)
        y = layer(y, memory, tgt_mask=future, memory_key_padding_mask=~mask)
    assert_close(model(source, target, mask), y @ model.target_embedding.weight.T + model.output.bias)


@every
def test_the_encoder_and_relative_positions(kind):
    model = made(kind)
    assert type(model.encoder) is (UniversalTransformer if "shared" in kind else Transformer)
    assert len(model.decoder) == (1 if "shared" in kind else 3)
    assert (model.encoder.layers, model.encoder.positions) == (2, kind.split("_")[0])
    for block in model.decoder:
        assert isinstance(block.attention, RelativeAttention) == kind.startswith("relative")
        assert not isinstance(block.source_attention, RelativeAttention)
        assert (block.attention.dropout, block.source_attention.dropout, block.dropout.p) == (0.1, 0.1, 0.1)
    assert model.encoder.blocks[0].attention.dropout == 0.1


# Cached decoding.


@every
@pytest.mark.parametrize("masked", [False, True])
def test_step_by_step_equals_the_whole(kind, masked):
    model, (source, target) = made(kind), ids()
    mask = MASK if masked else None
    assert_close(steps(model, source, target, mask), model(source, target, mask))


def test_the_keys_of_the_source_are_made_once():
    model, (source, target) = made("relative_shared"), ids()
    calls = {"source": 0, "target": []}

    def seen(module, inputs, output):
        calls["source"] += 1

    def decoded(module, inputs, output):
        calls["target"].append(inputs[0].shape[1])

    model.decoder[0].source_attention.key_value.register_forward_hook(seen)
    model.decoder[0].attention.key_value.register_forward_hook(decoded)
    steps(model, source, target)
    assert calls == {"source": 1, "target": [1] * (3 * T)}


@every
def test_states_are_batch_first_and_not_modified(kind):
    model, (source, target) = made(kind), ids()
    state = model.start(source, MASK)
    _, state = model.step(target[:, 0], state)
    kept = tree_map(torch.clone, state)
    assert isinstance(state, tuple)
    assert {type(x) for x in tree_leaves(state)} == {torch.Tensor}
    assert {len(x) for x in tree_leaves(state)} == {B}
    logits, _ = model.step(target[:, 1], state)
    assert all(map(torch.equal, tree_leaves(state), tree_leaves(kept)))
    rows = torch.tensor([2, 0, 0])
    found, _ = model.step(target[rows, 1], tree_map(lambda x: x[rows], state))
    assert_close(found, logits[rows])


def test_the_layers_of_shared_models_may_be_changed():
    model, (source, target) = made("relative_shared"), ids()
    fewer = model(source, target)
    model.encoder.layers = model.decoder_layers = 5
    assert (model(source, target) - fewer).abs().max() > 1e-3
    assert_close(steps(model, source, target), model(source, target))


# Who may see what.


@every
def test_later_tokens_and_padding_change_no_earlier_logits(kind):
    model, (source, target) = made(kind), ids()
    logits = model(source, target)
    for t in range(T):
        other = target.clone()
        other[:, t:] = (other[:, t:] + 1) % OUT
        found = model(source, other)
        assert_close(found[:, : t + 1], logits[:, : t + 1])
        assert t == T - 1 or not torch.allclose(found[:, t + 1 :], logits[:, t + 1 :])
    padded = torch.cat([target, torch.zeros(B, 3, dtype=torch.long)], 1)
    assert_close(model(source, padded)[:, :T], logits)


@every
def test_masked_sources_have_no_influence(kind):
    model, (source, target) = made(kind), ids()
    logits = model(source, target, MASK)
    rows = torch.cat([model.source_embedding.weight.detach(), torch.full((1, D), torch.nan)])
    model.source_embedding = nn.Embedding.from_pretrained(rows, freeze=False)
    poisoned = source.masked_fill(~MASK, VOCAB)
    assert torch.equal(model(poisoned, target, MASK), logits)
    assert logits.isfinite().all()
    assert_close(model(source[1:2, :3], target[1:2]), logits[1:2])
    loss = model(poisoned, target, MASK).square().sum()
    assert all(g.isfinite().all() for g in torch.autograd.grad(loss, list(model.parameters())))


# Sizes and first values.


def model_size(source, out, d, hidden, layers, positions, shared):
    attention, norms, hidden_part = 4 * d * d, 2 * d, 2 * d * hidden + hidden + d
    relative = d * d + 2 * d if positions == "relative" else 0
    encoder, decoder = attention + hidden_part + 2 * norms, 2 * attention + hidden_part + 3 * norms
    return (1 if shared else layers) * (encoder + decoder + 2 * relative) + (source + out) * d + out


@pytest.mark.parametrize("positions", ["absolute", "relative"])
@pytest.mark.parametrize("shared", [False, True])
def test_parameters_of_the_published_configurations(positions, shared):
    options = {"positions": positions, "shared": shared}
    scan = TransformerSeq2Seq(15, 8, **options)
    wanted = {"absolute": (992_136, 332_680), "relative": (1_091_976, 365_960)}[positions][shared]
    assert count(scan) == model_size(15, 8, 128, 256, 3, **options) == wanted
    cogs = TransformerSeq2Seq(700, 600, 512, 4, 2, 2, 512, **options)
    assert count(cogs) == model_size(700, 600, 512, 512, 2, **options)
    assert count(TransformerSeq2Seq(15, 8, tied=False, **options)) == wanted + 8 * 128


def test_the_output_is_the_embedding_of_the_target():
    model = made()
    assert model.output.weight is model.target_embedding.weight
    assert not TransformerSeq2Seq(VOCAB, OUT, D, 2).output.bias.any()
    untied = made(tied=False)
    assert untied.output.weight is not untied.target_embedding.weight
    model.load_state_dict(made(kind="relative", scaling="TEU").state_dict())
    assert model.output.weight is model.target_embedding.weight


@pytest.mark.parametrize(("scaling", "spread"), [("none", 1.0), ("TEU", (2 / 364) ** 0.5), ("PED", (2 / 64) ** 0.5)])
def test_scaling_initialises_both_embeddings(scaling, spread):
    torch.manual_seed(0)
    model = TransformerSeq2Seq(300, 300, 64, scaling=scaling)
    for embedding in (model.source_embedding, model.target_embedding):
        assert embedding.weight.std().item() == pytest.approx(spread, rel=0.03)


def test_dropout_is_for_training_alone():
    model, (source, target) = made(), ids()
    assert torch.equal(model(source, target), model(source, target))
    model.train()
    assert not torch.equal(model(source, target), model(source, target))
    model = made("absolute", dropout=1.0).train()
    y = torch.zeros(D, dtype=torch.float64)
    for block in model.decoder:  # nothing is left of the terms that are added, nor of the tokens
        block.attention.dropout = block.source_attention.dropout = 0.0
        y = block.norm(block.source_norm(block.attention_norm(y)))
    assert_close(model(source, target), model.output(y).expand(B, T, -1))


# Derivatives, compilation, half precision, errors.


@pytest.mark.parametrize("kind", ["absolute", "relative_shared"])
def test_gradients_are_those_of_finite_differences(kind):
    model, (source, target) = made(kind), ids()
    parameters = dict(model.named_parameters())

    def run(*values):
        own = dict(zip(parameters, values, strict=True))
        return torch.func.functional_call(model, own, (source, target[:, :3], MASK))

    assert torch.autograd.gradcheck(run, tuple(parameters.values()), fast_mode=True)


@pytest.mark.parametrize("kind", ["absolute", "relative_shared"])
def test_compiled_equals_eager(kind):
    model, (source, target) = made(kind), ids()
    torch._dynamo.reset()
    found = []
    for run in (model, torch.compile(model, backend="aot_eager", fullgraph=True)):
        logits = run(source, target, MASK)
        found.append([logits, *torch.autograd.grad(logits.square().sum(), list(model.parameters()))])
    for a, b in zip(*found, strict=True):
        assert_close(b, a)


@every
def test_bfloat16_autocast(kind):
    model, (source, target) = made(kind, torch.float32), ids()
    exact = model(source, target, MASK)
    with torch.autocast("cpu", torch.bfloat16):
        model.train()(source, target, MASK).float().square().sum().backward()
        model.eval()
        for found in (model(source, target, MASK), steps(model, source, target, MASK)):
            assert (found - exact).norm() < 0.05 * exact.norm()
    assert all(p.grad.isfinite().all() for p in model.parameters())


def test_wrong_arguments_are_named():
    model, (source, target) = made(), ids()
    with pytest.raises(ValueError, match="Every source must have at least one token, its end, got sources of length 0"):
        model(source[:, :0], target)
    with pytest.raises(ValueError, match="Every target must have at least one token, its end, got targets of length 0"):
        model(source, target[:, :0])
    with pytest.raises(ValueError, match=r"`source` must be a tensor of integer ids \[B, S\], got torch.float32 of"):
        model(source.float(), target)
    with pytest.raises(ValueError, match=r"`target` must be .* integer ids \[B, T\], got torch.int64 of shape \[4\]"):
        model(source, target[:, 0])
    with pytest.raises(ValueError, match="`target` must have B=4 rows, as many as the source, got 3"):
        model(source, target[:3])
    with pytest.raises(ValueError, match=r"`token` must be a tensor of integer ids \[B\], got torch.int64 of shape"):
        model.step(target[:, :1], model.start(source))
    with pytest.raises(ValueError, match="`token` must have B=4 rows, as many as the source, got 2"):
        model.step(target[:2, 0], model.start(source))
    with pytest.raises(ValueError, match="`state` must be what `start` or a step has returned, got NoneType"):
        model.step(target[:, 0], None)
    with pytest.raises(ValueError, match=r"`mask` must have the shape \[B=4, T=6\], got \[4, 5\]"):
        model(source, target, MASK[:, :5])


@pytest.mark.parametrize(("name", "size"), [("decoder_layers", 0), ("decoder_layers", -1), ("size", 0)])
def test_sizes_are_checked(name, size):
    with pytest.raises(ValueError, match=f"`{name}` must be at least 1, got {size}"):
        TransformerSeq2Seq(9, 7, **{name: size})


def test_ids_beyond_the_vocabulary_are_named():
    model = TransformerSeq2Seq(9, 7, size=16)
    source, target = torch.tensor([[2, 8]]), torch.tensor([[6, 1]])
    with pytest.raises(ValueError, match=r"`source` must be ids from 0 to 8, got 2 to 9.*vocab_size"):
        model(source.clamp(2) + (source == 8), target)
    with pytest.raises(ValueError, match=r"`target` must be ids from 0 to 6, got 0 to 7"):
        model(source, target + (target == 6))


def test_the_example_of_the_documentation():
    page = Path(__file__).parents[2] / "docs" / "models.md"
    example = next(
        part for part in re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL) if "written" in part
    )
    found = {}
    exec(compile(example, str(page), "exec"), found)
    assert found["written"].shape == (2, 10)
