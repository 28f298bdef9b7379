"""GPT and BERT against transformers, and text from caches."""

from __future__ import annotations

import pytest
import torch
from torchvision_here import torchvision
from zoo_parity import assert_same_as, scrambled

import fluxlike as fl

SMALL_GPT = fl.models.GPTConfig(depth=3, dim=24, num_heads=4, vocabulary=31, context=20)
SMALL_BERT = fl.models.BERTConfig(depth=3, dim=24, num_heads=4, vocabulary=31, context=20)
TOKENS = torch.randint(31, (4, 12), generator=torch.Generator().manual_seed(0))
SEGMENTS = (torch.arange(12) > 4).long().expand(4, 12)
LENGTHS = torch.tensor([12, 3, 7, 1])


@pytest.fixture(scope="module")
def transformers():
    torchvision()
    return pytest.importorskip("transformers", reason="transformers is not installed")


@pytest.fixture(scope="module")
def gpt2(transformers):
    config = transformers.GPT2Config(vocab_size=31, n_positions=20, n_embd=24, n_layer=3, n_head=4)
    with torch.random.fork_rng():
        torch.manual_seed(0)  # of some weights the text is one token again and again
        return attentive(scrambled(transformers.GPT2LMHeadModel(config)))


@pytest.fixture(scope="module")
def bert(transformers):
    return attentive(scrambled(transformers.BertForSequenceClassification(_bert_config(transformers))))


def attentive(module):
    """A module with weights so large that a token does not attend all others alike."""
    with torch.no_grad():
        for weight in module.parameters():
            weight.mul_(10 if weight.ndim == 2 else 1)
    return module


def _bert_config(transformers):
    return transformers.BertConfig(
        vocab_size=31, max_position_embeddings=20, hidden_size=24, num_hidden_layers=3,
        num_attention_heads=4, intermediate_size=96, num_labels=5,
    )  # fmt: skip


@pytest.fixture(scope="module")
def model():
    with fl.seeded(fl.Key(0)):
        return fl.f64(fl.models.GPT(SMALL_GPT))


def close(y, wanted):
    return y.shape == wanted.shape and bool((y - wanted).abs().max() <= 1e-9 * wanted.abs().max())


def count(tree):
    return sum(x.numel() for x in fl.trainables(tree))


def test_a_gpt_with_the_weights_of_transformers_gives_its_logits(gpt2):
    ours = assert_same_as(fl.models.GPT(SMALL_GPT), gpt2, TOKENS, output=lambda out: out.logits)
    assert ours.head.weight is ours.embedding.tokens.weight


def test_a_gpt_reads_a_checkpoint_without_a_head_and_with_the_masks_of_old_versions(gpt2):
    theirs = {f"h.{i}.attn.bias": torch.ones(1, 1, 20, 20).tril() for i in range(3)}
    theirs |= {f"h.{i}.attn.masked_bias": torch.tensor(-1e4) for i in range(3)}
    theirs |= gpt2.transformer.state_dict()
    ours = fl.models.load_weights(theirs, fl.f64(fl.models.GPT(SMALL_GPT)))
    assert close(ours(TOKENS), gpt2(TOKENS).logits)


def test_weights_of_another_size_are_refused_by_name(gpt2):
    other = fl.models.GPTConfig(depth=2, dim=24, num_heads=4, vocabulary=31, context=20)
    with pytest.raises(ValueError, match=r"h\.2\.ln_1\.weight"):
        fl.models.load_weights(gpt2.state_dict(), fl.f64(fl.models.GPT(other)))


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("gpt2", 124_439_808),
        ("gpt2-medium", 354_823_168),
        ("gpt2-large", 774_030_080),
        ("gpt2-xl", 1_557_611_200),
    ],
)
def test_a_gpt_has_as_many_parameters_as_the_published_one(name, parameters):
    with torch.device("meta"):
        assert count(fl.models.GPT(name)) == parameters


@pytest.mark.parametrize(("name", "parameters"), [("base", 109_482_240), ("large", 335_141_888)])
def test_a_berts_encoder_has_as_many_parameters_as_the_published_one(name, parameters):
    with torch.device("meta"):
        assert count(fl.models.BERT(name).backbone) == parameters


def test_a_bert_with_the_weights_of_transformers_gives_its_scores(bert):
    ours = assert_same_as(fl.models.BERT(SMALL_BERT, nclasses=5), bert, TOKENS, output=lambda out: out.logits)
    keys = torch.arange(12) < LENGTHS[:, None]
    wanted = bert(TOKENS, attention_mask=keys.long(), token_type_ids=SEGMENTS).logits
    assert close(ours(TOKENS, SEGMENTS, lengths=LENGTHS), wanted)
    assert close(ours(TOKENS, SEGMENTS, mask=keys), wanted)
    assert close(ours(TOKENS, SEGMENTS, mask=keys, lengths=torch.full((4,), 12)), wanted)


def test_a_berts_encoder_with_the_weights_of_transformers_gives_its_features(transformers):
    theirs = attentive(scrambled(transformers.BertModel(_bert_config(transformers))))
    weights = {
        **theirs.state_dict(),
        "embeddings.position_ids": torch.arange(20)[None],
        "cls.predictions.bias": torch.zeros(31),
    }
    weights["embeddings.LayerNorm.gamma"] = weights.pop("embeddings.LayerNorm.weight")
    weights["embeddings.LayerNorm.beta"] = weights.pop("embeddings.LayerNorm.bias")
    before = fl.f64(fl.models.BERT(SMALL_BERT, nclasses=5))
    ours = fl.models.load_weights(weights, before, classifier=False)
    mask = TOKENS > 5
    mask[:, 0] = True
    features, pooled = ours.backbone(TOKENS, SEGMENTS, mask=mask)
    wanted = theirs(TOKENS, attention_mask=mask.long(), token_type_ids=SEGMENTS)
    assert close(features, wanted.last_hidden_state)
    assert close(pooled, wanted.pooler_output)
    assert count(ours.backbone) == count(dict(theirs.named_parameters()))
    assert fl.tree.allclose(ours.classifier, before.classifier)


def test_greedy_text_is_that_of_transformers_and_that_without_a_cache(gpt2):
    model = fl.models.load_weights(gpt2.state_dict(), fl.f64(fl.models.GPT(SMALL_GPT)))
    start = TOKENS[:, :5]
    texts = fl.models.generate(model, start, 15, temperature=0)
    wanted = gpt2.generate(
        start, attention_mask=torch.ones_like(start), max_new_tokens=15, do_sample=False,
        eos_token_id=None, pad_token_id=0,
    )  # fmt: skip
    assert torch.equal(texts, wanted)
    again = start
    for _ in range(15):
        again = torch.cat((again, model(again)[:, -1:].argmax(-1)), 1)
    assert torch.equal(texts, again)
    assert texts[:, 5:].unique().numel() > 3


def test_logits_from_caches_are_those_of_the_whole_text(model):
    caches, parts = model.caches(4, 12), []
    for part in TOKENS.split((5, 1, 4, 2), 1):
        logits, caches = model(part, caches)
        parts.append(logits)
    assert close(torch.cat(parts, 1), model(TOKENS))
    assert [int(cache.count) for cache in caches] == [12, 12, 12]


@pytest.mark.usefixtures("uncompiled")
def test_a_step_from_caches_is_traced_once_under_jit():
    with fl.seeded(fl.Key(0)):
        model = fl.f64(
            fl.models.GPT(fl.models.GPTConfig(depth=1, dim=24, num_heads=4, vocabulary=31, context=20))
        )
    step = fl.jit(lambda model, tokens, caches: model(tokens, caches))
    caches, parts = model.caches(4, 12), []
    for i in range(12):
        logits, caches = step(model, TOKENS[:, i : i + 1], caches)
        parts.append(logits)
    assert close(torch.cat(parts, 1), model(TOKENS))
    assert step.cache_info().traces == 1


def test_a_token_is_judged_by_those_before_it_alone(model):
    other = TOKENS.clone()
    other[:, 7] = (other[:, 7] + 1) % 31
    y, changed = model(TOKENS), model(other)
    assert close(changed[:, :7], y[:, :7])
    assert not torch.allclose(changed[:, 7:], y[:, 7:])


def test_an_encoder_is_made_by_name():
    with torch.device("meta"):
        assert len(fl.models.TextEncoder("base").blocks) == 12
    with pytest.raises(ValueError, match=r"TextEncoder.*write one of 'base', 'large'"):
        fl.models.TextEncoder("tiny")


def test_a_bert_of_no_classes_is_an_error():
    with pytest.raises(ValueError, match=r"BERT\(nclasses=0\): write a whole number of at least 1"):
        fl.models.BERT(SMALL_BERT, nclasses=0)


def test_padding_changes_nothing():
    with fl.seeded(fl.Key(0)):
        model = fl.f64(fl.models.BERT(SMALL_BERT, nclasses=5))
    other = torch.where(torch.arange(12) < LENGTHS[:, None], TOKENS, 9)
    assert close(model(other, lengths=LENGTHS), model(TOKENS, lengths=LENGTHS))
    for i, n in enumerate(LENGTHS):
        assert close(model(TOKENS[i : i + 1, :n]), model(TOKENS, lengths=LENGTHS)[i : i + 1])


def test_text_after_the_stop_token_is_that_token_and_ends_when_all_have(model, gpt2):
    greedy = fl.models.generate(model, TOKENS, 8, temperature=0)
    stop = int(greedy[0, 14])
    texts = fl.models.generate(model, TOKENS, 8, temperature=0, stop=stop)
    ends = [([*row[12:].tolist(), stop]).index(stop) for row in greedy]
    assert texts.shape[1] == 12 + min(8, max(ends) + 1)
    for row, text, end in zip(greedy, texts, ends, strict=True):
        assert torch.equal(text[: 12 + end], row[: 12 + end][: texts.shape[1]])
        assert (text[12 + end :] == stop).all()
    alone = fl.models.generate(model, TOKENS[:1], 8, temperature=0, stop=stop)
    assert torch.equal(alone, greedy[:1, : 12 + ends[0] + 1])

    twin = fl.models.load_weights(gpt2.state_dict(), fl.f64(fl.models.GPT(SMALL_GPT)))
    start = TOKENS[:, :5]
    stop = int(fl.models.generate(twin, start, 15, temperature=0)[1, 8])
    wanted = gpt2.generate(
        start, attention_mask=torch.ones_like(start), max_new_tokens=15, do_sample=False,
        eos_token_id=stop, pad_token_id=stop,
    )  # fmt: skip
    assert torch.equal(fl.models.generate(twin, start, 15, temperature=0, stop=stop), wanted)


def test_what_the_error_of_a_text_too_long_says_to_write_runs(model):
    assert model.context == 20
    for tokens, n in ((TOKENS, 9), (TOKENS[:, -11:], 10), (TOKENS[:, -1:], 20)):
        assert fl.models.generate(model, tokens, n, temperature=0).shape == (4, 21)
        with pytest.raises(ValueError, match=f"n={n} at most"):
            fl.models.generate(model, tokens, n + 1)


def test_a_text_too_long_is_refused_by_the_caches_of_a_model_that_does_not_tell_its_context(model):
    with pytest.raises(ValueError, match="caches are for 21 tokens"):
        fl.models.generate(Watched(model), TOKENS, 10)


class Watched:
    """A language model that notes for how many tokens its caches have memory."""

    def __init__(self, model):
        self.model, self.made, self.used = model, [], []

    def __call__(self, tokens, caches):
        self.used.append(caches[0].max_len)
        return self.model(tokens, caches)

    def caches(self, batch, max_len):
        self.made.append((batch, max_len))
        return self.model.caches(batch, max_len)


def test_the_memory_of_caches_is_doubled_when_it_is_full(model, monkeypatch):
    wanted = fl.models.generate(model, TOKENS[:, :3], 17, temperature=0)
    monkeypatch.setattr("fluxlike.models.generation._FIRST", 4)
    watched = Watched(model)
    assert torch.equal(fl.models.generate(watched, TOKENS[:, :3], 17, temperature=0), wanted)
    assert watched.used == [4] * 2 + [8] * 4 + [16] * 8 + [19] * 3
    assert watched.made[0] == (0, 19)  # what is too long is refused at once


def test_draws_are_those_of_the_key_and_follow_the_probabilities(model):
    start = TOKENS[:1, :3].expand(4000, 3)
    texts = fl.models.generate(model, start, 1, temperature=0.7, key=fl.Key(1))
    assert torch.equal(texts, fl.models.generate(model, start, 1, temperature=0.7, key=fl.Key(1)))
    assert not torch.equal(texts, fl.models.generate(model, start, 1, temperature=0.7, key=fl.Key(2)))
    wanted = (model(start[:1])[0, -1] / 0.7).softmax(-1)
    found = texts[:, -1].bincount(minlength=31) / 4000
    assert (found - wanted).abs().max() < 4 * (wanted.max() / 4000).sqrt()


def test_top_k_draws_among_the_likeliest(model):
    start = TOKENS[:1, :3].expand(500, 3)
    texts = fl.models.generate(model, start, 1, top_k=4, temperature=5.0, key=fl.Key(1))
    likeliest = model(start[:1])[0, -1].topk(4).indices
    assert set(texts[:, -1].tolist()) == set(likeliest.tolist())
    assert torch.equal(
        fl.models.generate(model, TOKENS, 5, top_k=1, key=fl.Key(3)),
        fl.models.generate(model, TOKENS, 5, temperature=0),
    )


def test_the_heads_weight_is_trained_together_with_the_embedding(model):
    grads = fl.gradient(
        lambda m: fl.losses.logitcrossentropy(m(TOKENS).flatten(0, 1), TOKENS.flatten()), model
    )
    assert grads.embedding.tokens.weight is not None
    assert grads.head.weight is None
    new, _ = fl.update(fl.setup(fl.Descent(0.1), model), model, grads)
    assert new.head.weight is new.embedding.tokens.weight
    assert not torch.equal(new.head.weight, model.head.weight)
    assert count(new) == count(model)


class Masks(torch.overrides.TorchFunctionMode):
    """Counts the masks of dropout that are drawn."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is torch.nn.functional.scaled_dot_product_attention:
            self.count += (args[4] if len(args) > 4 else (kwargs or {}).get("dropout_p", 0.0)) > 0
        elif getattr(function, "__name__", "") == "dropout":
            training = args[2] if len(args) > 2 else (kwargs or {}).get("training", True)
            self.count += training and (args[1] if len(args) > 1 else (kwargs or {}).get("p", 0.5)) > 0
            with torch._C.DisableTorchFunction():
                return function(*args, **(kwargs or {}))
        return function(*args, **(kwargs or {}))


def masks(model, train):
    with Masks() as seen:
        train(model)
    return seen.count


def test_as_many_masks_are_drawn_in_training_as_by_transformers(gpt2, bert):
    def ours(model):
        with fl.mode("train"):
            model(TOKENS)

    def theirs(model):
        model.train()
        model(TOKENS)
        model.eval()

    gpt = fl.models.GPT(SMALL_GPT)
    assert masks(gpt, ours) == masks(gpt2, theirs) == 1 + 3 * 3
    assert masks(fl.models.BERT(SMALL_BERT, nclasses=5), ours) == masks(bert, theirs) == 1 + 3 * 3 + 1


def test_dropout_is_a_tenth_by_default_as_published():
    for model in (fl.models.GPT(SMALL_GPT), fl.models.TextEncoder(SMALL_BERT)):
        assert model.dropout.p == 0.1
        for block in model.blocks:
            assert (block.dropout.p, block.self_attn.dropout, block.hidden_dropout) == (0.1, 0.1, 0.0)


def test_dropout_acts_in_training_alone():
    tokens = TOKENS
    for make in (fl.models.GPT(SMALL_GPT, dropout=0.5), fl.models.BERT(SMALL_BERT, dropout=0.5)):
        assert torch.equal(make(tokens), make(tokens))
        with fl.mode("train"):
            with fl.seeded(fl.Key(0)):
                one = make(tokens)
            with fl.seeded(fl.Key(1)):
                other = make(tokens)
        assert not torch.equal(one, other)


def test_a_text_model_is_saved_and_loaded(model, tmp_path):
    fl.save(tmp_path / "gpt.safetensors", model)
    loaded = fl.load(tmp_path / "gpt.safetensors", like=fl.f64(fl.models.GPT(SMALL_GPT)))
    assert torch.equal(loaded(TOKENS), model(TOKENS))
    assert loaded.head.weight is loaded.embedding.tokens.weight


def test_every_parameter_of_a_bert_is_reached_by_the_gradient():
    model = fl.models.BERT(SMALL_BERT, nclasses=4)

    def loss(model, x, y):
        return fl.losses.logitcrossentropy(model(x, SEGMENTS, lengths=LENGTHS), y)

    grads = fl.gradient(loss, model, TOKENS, torch.arange(4))
    places = [path for path, _ in fl.trainables(model, paths=True)]
    assert [path for path, _ in fl.trainables(grads, paths=True)] == places
    assert not fl.find_nonfinite(grads)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda m: m(TOKENS[0]), fl.LayerError, r"found \(12,\); for one text write tokens\[None\]"),
        (lambda m: m(TOKENS.double()), fl.LayerError, "integers"),
        (lambda m: m(torch.cat((TOKENS, TOKENS), 1)), fl.LayerError, r"positions for 20 tokens, found 24"),
        (lambda m: m(TOKENS + 30), fl.LayerError, "31 vectors"),
        (lambda m: m(TOKENS, m.caches(4)[:2]), ValueError, "3 blocks, found 2 caches"),
        (lambda m: m(TOKENS, m.caches(4)[0]), TypeError, r"list of a KVCache for each block, found KVCache"),
        (lambda m: m(TOKENS, [1, 2, 3]), TypeError, "found list of int; make them by model.caches"),
        (lambda m: m("hello", m.caches(4)), fl.LayerError, "integers of shape .*, found str"),
        (lambda m: m.caches(4, 21), ValueError, "for 21 tokens, and the GPT has learnt positions for 20"),
        (lambda m: m(TOKENS, m.caches(4, 8)), fl.LayerError, "memory for 8 tokens"),
        (
            lambda m: fl.models.generate(m, TOKENS, 10),
            ValueError,
            r"n=10\) after 12 tokens asks for a text of 22, and this GPT has a context of 20, so that its "
            r"texts end at 21; write n=9 at most, or tokens\[:, -11:\] to begin with the last of them alone",
        ),
        (
            lambda m: fl.models.generate(m, torch.cat((TOKENS, TOKENS), 1), 10),
            ValueError,
            r"after 24 tokens asks for a text of 34.*; write tokens\[:, -11:\] to begin",
        ),
        (
            lambda m: fl.models.generate(m, TOKENS, 30),
            ValueError,
            r"after 12 tokens asks for a text of 42.*; write n=9 at most$",
        ),
        (
            lambda m: fl.models.generate(m, torch.cat((TOKENS, TOKENS), 1), 30),
            ValueError,
            r"; write n=20 at most, after tokens\[:, -1:\]$",
        ),
        (lambda m: fl.models.generate(m, TOKENS[0], 10), ValueError, r"\(N, L\)"),
        (lambda m: fl.models.generate(m, [1, 2], 10), TypeError, r"\(N, L\).*found list"),
        (lambda m: fl.models.generate(m, TOKENS, -1), ValueError, "n=-1"),
        (lambda m: fl.models.generate(m, TOKENS, 1, temperature=-1.0), ValueError, "temperature=-1.0"),
        (lambda m: fl.models.generate(m, TOKENS, 1, top_k=0), ValueError, "top_k=0"),
        (lambda m: fl.models.generate(m, TOKENS, 3.0), TypeError, r"n=3\.0\): write an integer"),
        (lambda m: fl.models.generate(m, TOKENS, "3"), TypeError, r"n='3'\): write an integer"),
        (lambda m: fl.models.generate(m, TOKENS, 1, temperature="a"), TypeError, "'a'.*write a number"),
        (lambda m: fl.models.generate(m, TOKENS, 1, top_k=1.5), TypeError, r"top_k=1\.5\): write an integer"),
        (lambda m: fl.models.generate(m, TOKENS, 1, stop="."), TypeError, "write the number of a token"),
        (
            lambda m: fl.models.generate(fl.models.BERT(SMALL_BERT), TOKENS, 1),
            TypeError,
            "language model with caches, such as a GPT, found TextClassifier",
        ),
        (lambda m: fl.models.GPTConfig(2, 24, 4), TypeError, "positional"),
        (lambda m: fl.models.BERTConfig(2, 24, 4), TypeError, "positional"),
        (lambda m: fl.models.GPTConfig(depth=-1, dim=24, num_heads=4), ValueError, r"GPTConfig\(depth=-1\)"),
        (lambda m: fl.models.BERTConfig(depth=1, dim=0, num_heads=4), ValueError, r"BERTConfig\(dim=0\)"),
        (lambda m: fl.models.GPT("gpt3"), ValueError, "did you mean 'gpt2'"),
    ],
)
def test_what_a_gpt_refuses(model, call, error, message):
    with pytest.raises(error, match=message):
        call(model)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda m: m(TOKENS, mask=torch.ones(4, 12).long()), fl.LayerError, r"write mask\.bool\(\)"),
        (lambda m: m(TOKENS, mask=torch.ones(4, 11).bool()), fl.LayerError, r"\(4, 12\), found \(4, 11\)"),
        (lambda m: m(TOKENS, SEGMENTS[:1]), fl.LayerError, "segments of the shape of the tokens"),
        (lambda m: m(TOKENS, [0] * 6), fl.LayerError, r"segments as a tensor .*, found list"),
        (lambda m: m(TOKENS, lengths=LENGTHS + 1), fl.LayerError, "lengths from 0 to 12 here, found 2 to 13"),
        (lambda m: m(TOKENS, lengths=[1, 2, 3, 4]), fl.LayerError, "tensor of integers, found list"),
    ],
)
def test_what_a_bert_refuses(call, error, message):
    with pytest.raises(error, match=message):
        call(fl.models.BERT(SMALL_BERT))
