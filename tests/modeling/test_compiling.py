"""The composite computed in other ways: with gradient checkpointing, compiled, and exported."""

import pytest
import torch
from pairs import join, random_inputs, tiny_model


def test_gradient_checkpointing_changes_no_gradient():
    model = join(tiny_model("llama", 1), tiny_model("qwen2", 2), dropout=0.0).train()
    inputs = random_inputs(0)
    target = torch.randint(1, 61, (len(inputs["input_ids"]), 3))
    full = {**inputs, "input_ids": torch.cat([inputs["input_ids"], target], 1)}
    full["attention_mask"] = torch.cat([inputs["attention_mask"], torch.ones_like(target)], 1)
    labels = torch.full_like(full["input_ids"], -100)
    labels[:, -3:] = target
    layer, calls = model.receiver.model.layers[1].mlp, []
    layer.register_forward_pre_hook(lambda *_: calls.append(torch.is_grad_enabled()))
    found = {}
    for checkpointing in (False, True):
        if checkpointing:
            model.gradient_checkpointing_enable()
        for skip_logits in (False, True):
            calls.clear()
            model.zero_grad()
            model(**full, labels=labels, skip_logits=skip_logits).loss.backward()
            found[checkpointing, skip_logits] = (
                [parameter.grad.clone() for parameter in model.bridge.parameters()],
                calls.count(True),
            )
    for skip_logits in (False, True):
        (plain, once), (again, twice) = found[False, skip_logits], found[True, skip_logits]
        assert twice == 2 * once == 2  # the target pass alone
        assert all(torch.allclose(one, other, atol=1e-6) for one, other in zip(plain, again, strict=True))
    # Of layers 0, 1 and 2, not layer 1.
    model.gradient_checkpointing_enable({"use_reentrant": True}, every_n_layers=2)
    calls.clear()
    model.zero_grad()
    model(**full, labels=labels).loss.backward()
    assert calls.count(True) == 1
    expected = found[False, False][0]
    assert all(
        torch.allclose(p.grad, grad, atol=1e-6)
        for p, grad in zip(model.bridge.parameters(), expected, strict=True)
    )


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("form", ["rewrite", "message"])
@pytest.mark.parametrize("training", [False, True])
def test_a_compiled_model_gives_the_same(training, form):
    model = join(tiny_model("llama", 1), tiny_model("qwen2", 2), dropout=0.0, bridge_form=form).train(
        training
    )
    inputs = random_inputs(0)
    with torch.set_grad_enabled(training):
        expected = model(**inputs).logits
        got = torch.compile(model, backend="aot_eager")(**inputs).logits
    assert torch.allclose(got, expected, atol=1e-4)
    if training:
        parameter = next(model.bridge.parameters())
        expected, got = (torch.autograd.grad(logits.sum(), parameter)[0] for logits in (expected, got))
        assert torch.allclose(got, expected, atol=1e-3)


class Logits(torch.nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, input_ids, attention_mask, sharer_input_ids, sharer_attention_mask):
        return self.model(
            input_ids, attention_mask, sharer_input_ids, sharer_attention_mask, use_cache=False
        ).logits


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("form", ["rewrite", "message"])
def test_an_exported_model_gives_the_same(form):
    model, inputs = join(tiny_model("llama", 1), tiny_model("qwen2", 2), bridge_form=form), random_inputs(0)
    with torch.no_grad():
        program = torch.export.export(Logits(model), (), inputs)
        assert torch.allclose(program.module()(**inputs), model(**inputs).logits, atol=1e-4)
