"""Stream, documents, rows, batches, and the loss of a batch, whole and in parts."""
import numpy as np
import pytest
import torch

import data
import diffusion
import model as models
import train
from data import FIRST_TASK, KINDS, MASK, MEMBERS, PAD, SPECIALS
from files import DataError, autocast
from worlds import assert_law

pytestmark = pytest.mark.usefixtures("one_thread")
CODES = {"text": (1, 10), "image": (1, 4), "speech": (2, 6)}
SLOTS = {"text": [32], "image-text": [4, 5], "speech-text": [8, 5]}
STREAM = data.Stream(CODES, SLOTS)


def documents(kind, n):
    """n random documents of a kind."""
    rng = np.random.default_rng(list(KINDS).index(kind))
    made = []
    while len(made) < n:
        text = rng.integers(0, 10, rng.integers(1, 5))
        if kind == "text":
            made += STREAM.texts(rng.integers(0, 10, rng.integers(2, 20)))
        elif kind == "image-text":
            made.append(STREAM.document(kind, [rng.integers(0, 4, 4), text]))
        else:
            speech = rng.integers(0, 6, 2 * rng.integers(1, 4))
            made.append(STREAM.document(kind, [speech, text]))
    return data.Documents.of(made, STREAM)


DOCUMENTS = {kind: documents(kind, 40) for kind in KINDS}


# ------------------------------------------------------------------------------------------------
# Stream and documents.


def test_ranges_of_ids_are_disjoint_and_cover_the_vocabulary():
    seen = list(range(len(SPECIALS)))
    for modality, (groups, size) in CODES.items():
        for group in range(groups):
            low, high = STREAM.ranges(modality, group)
            assert high - low == size + (modality != "image")  # a picture has no end
            seen += range(low, low + size + 1)
    assert seen == list(range(STREAM.vocab))


def test_a_document_by_hand():
    made = STREAM.document("speech-text", [[0, 1, 2, 3], [7, 8]])
    speech = STREAM.start["speech"]
    text = STREAM.start["text"]
    head = [SPECIALS.index("<task speech-text>"), SPECIALS.index("<speech>")]
    codes = [speech + 0, speech + 7 + 1, speech + 2, speech + 7 + 3]
    ends = [speech + 6, speech + 13] * 2
    caption = [SPECIALS.index("<text>"), text + 7, text + 8] + [text + 10] * 3
    assert made.tolist() == head + codes + ends + caption
    assert (STREAM.document("image-text", [None, [1]])[2:6] == MASK).all()


@pytest.mark.parametrize("modality, codes, slot", [
    ("text", [3, 0, 9], 5), ("text", [], 5), ("speech", [5, 5, 0, 1], 8), ("image", [3, 2], 2)])
def test_codes_survive_a_member(modality, codes, slot):
    ids = STREAM.fill(modality, codes, slot)
    assert STREAM.to_codes(modality, ids).tolist() == codes


def test_codes_end_at_the_first_end_after_whole_steps():
    ids = STREAM.fill("speech", [5, 4, 3, 2], 8)
    ids[1] = MASK     # reads as 0
    ids[3] = ids[-1]  # an end within the second step of two
    assert STREAM.to_codes("speech", ids).tolist() == [5, 0]


def test_what_is_too_long_is_refused():
    with pytest.raises(DataError, match="text of 5 tokens does not fit into 5"):
        STREAM.fill("text", [1] * 5, 5)


def test_texts_are_cut_in_order_and_hide_their_length():
    codes = np.arange(75) % 10
    made = STREAM.texts(codes)
    assert [len(d) for d in made] == [34, 34, 2 + 16]  # 11 codes, an end, 4 more ends
    text = np.concatenate([d[2:] for d in made]) - STREAM.start["text"]
    assert text.tolist() == codes.tolist() + [10] * 5


def test_documents_survive_a_file(tmp_path):
    made = {kind: (docs, documents(kind, 3)) for kind, docs in DOCUMENTS.items()}
    data.save_documents(tmp_path / "d.npz", made)
    read = data.load_documents(tmp_path / "d.npz")
    for kind, parts in made.items():
        for before, after in zip(parts, read[kind]):
            assert len(before) == len(after)
            assert all(np.array_equal(a, b) for a, b in zip(before, after))


# ------------------------------------------------------------------------------------------------
# What stands where.

# First id and first place of each modality, by hand.
FIRST = {"text": (8, 1), "image": (19, 33), "speech": (24, 37)}


def members(kind):
    """(member, place, low, high) along a document."""
    yield -1, 0, 0, 0  # the task
    for modality, slot in zip(KINDS[kind], SLOTS[kind]):
        first_id, first_place = FIRST[modality]
        groups, size = CODES[modality]
        yield -1, 0, 0, 0  # the boundary
        for i in range(slot):
            low = first_id + i % groups * (size + 1)
            high = low + size + (modality != "image")
            yield MEMBERS.index((kind, modality)), first_place + i, low, high


def walk(rows):
    """(member, place, low, high, document) of each token, token by token; None: pad."""
    number = -1
    for row in rows:
        for token in row:
            if token == PAD:
                yield None
                continue
            if FIRST_TASK <= token < FIRST_TASK + len(KINDS):
                number += 1
                rest = members(list(KINDS)[token - FIRST_TASK])
            yield *next(rest), number


def batches(seed=0, count=6):
    return data.Batches(DOCUMENTS, dict.fromkeys(KINDS, count), seed)


def masked(rows):
    """Every second token of a member masked."""
    hide = (rows >= len(SPECIALS)) & (torch.arange(rows.shape[1]) % 2 == 0)
    return rows.masked_fill(hide, MASK)


@pytest.mark.parametrize("rows", [
    batches()(0),
    masked(batches()(1)),
    data.stacked([DOCUMENTS[kind][i] for kind in KINDS for i in range(5)]),
], ids=["packed", "masked", "padded"])
def test_describe_equals_a_walk_along_the_rows(rows):
    got = STREAM.describe(rows)
    fields = torch.stack((got.member, got.place, got.low, got.high, got.doc), -1)
    for found, want in zip(fields.flatten(0, 1).tolist(), walk(rows.tolist())):
        if want is None:
            assert found[0] == found[4] == -1
        else:
            assert tuple(found) == want
    own = (got.member >= 0) & (rows != MASK)
    assert ((got.low <= rows) & (rows < got.high))[own].all()


# ------------------------------------------------------------------------------------------------
# Rows and batches.


@pytest.mark.parametrize("seed", range(5))
def test_documents_in_rows_neither_overlap_nor_get_lost(seed):
    lengths = np.random.default_rng(seed).integers(1, 30, 50)
    places, count = data.fit_rows(lengths, 32)
    free = np.ones((count, 32), bool)
    for (row, start), length in zip(places, lengths):
        assert start + length <= 32
        assert free[row, start:start + length].all()
        free[row, start:start + length] = False
    assert free.sum() == 32 * count - lengths.sum()
    assert free.mean() < 0.1
    assert data.fit_rows(lengths[:0], 32)[1] == 0


def found(rows):
    """The documents in rows, as sorted lists of ids."""
    doc = STREAM.describe(rows).doc
    return sorted(rows[doc == number].tolist() for number in range(int(doc.max()) + 1))


def test_rows_hold_the_documents_of_their_step():
    made = batches()
    for step in range(8):
        rows = made(step)
        assert rows.shape == (made.count, made.length)
        assert found(rows) == sorted(document.tolist() for document in made.drawn(step))


def test_batches_are_a_function_of_seed_and_step():
    made = batches()
    rows = [made(step) for step in range(9)]
    assert torch.equal(batches()(7), rows[7])
    assert not torch.equal(rows[6], rows[7])
    assert found(batches(seed=1)(7)) != found(rows[7])


def test_each_kind_goes_through_shuffled_epochs_of_its_own():
    texts = data.Documents.of([[i] * 3 for i in range(40)], STREAM)
    pairs = data.Documents.of([[100 + i] * 5 for i in range(10)], STREAM)
    made = data.Batches({"text": texts, "image-text": pairs}, {"text": 15, "image-text": 4}, 0)
    drawn = [int(document[0]) for step in range(8) for document in made.drawn(step)]
    for first, size in ((0, 40), (100, 10)):
        numbers = [n for n in drawn if (n < 100) == (first < 100)]
        epochs = [numbers[i * size:(i + 1) * size] for i in range(3)]
        for epoch in epochs:
            assert sorted(epoch) == list(range(first, first + size))
        assert epochs[0] != epochs[1] != epochs[2] != sorted(epochs[2])


def test_kinds_have_their_shares_of_the_tokens():
    mix = {"text": 1, "image-text": 2, "speech-text": 1}
    counts = data.documents_per_step(DOCUMENTS, mix, 4096)
    for kind, count in counts.items():
        tokens = count * DOCUMENTS[kind].lengths().mean()
        assert tokens == pytest.approx(4096 * mix[kind] / 4, rel=0.02)
    assert set(data.documents_per_step(DOCUMENTS, mix, 1).values()) == {1}


# ------------------------------------------------------------------------------------------------
# Noise, loss, parts.


def test_times_are_stratified_within_a_kind_and_modes_have_their_shares():
    n = 30_000
    modes = {"joint": 2, "first|second": 1, "first": 4, "second": 1}
    config = train.Config(modes=modes, time_power={"first": 0.5})
    kind = np.arange(n) % 3
    t, roles = data.document_noise(kind, config, data.rng(0))
    drawn = torch.zeros(len(diffusion.PAIR_MODES), dtype=torch.long)
    for k, members in enumerate(KINDS.values()):
        own = [s for s, (name, _) in enumerate(MEMBERS) if name == list(KINDS)[k]]
        own_roles = roles[kind == k][:, own]
        times = t[kind == k].clone()
        if len(members) == 1:
            assert (own_roles == diffusion.NOISED).all()
        else:
            mode = (own_roles[:, None] == data.ROLES).all(2).nonzero()[:, 1]
            drawn += torch.bincount(mode, minlength=len(drawn))
            times[mode == 3] **= 2  # "first" has the square roots
        assert sorted((times * n / 3).floor().tolist()) == pytest.approx(range(n // 3), abs=1)
    want = [modes.get(mode, 0) for mode in diffusion.PAIR_MODES]
    assert_law(drawn, want)


ROWS = batches()(0)


def noised(step=0, **changes):
    return data.noised(STREAM, ROWS, train.Config(**changes), step)


def test_noise_is_a_function_of_seed_and_step():
    assert torch.equal(noised(5).x, noised(5).x)
    assert not torch.equal(noised(5).x, noised(6).x)
    assert not torch.equal(noised(5).x, noised(5, seed=1).x)


def test_complement_adds_the_other_view_of_the_same_rows():
    one = noised()
    two = noised(complement=True)
    first, second = two.x.chunk(2)
    assert torch.equal(first, one.x)
    assert torch.equal(two.target, one.target.repeat(2, 1))
    assert torch.equal(two.counts, 2 * one.counts)
    losses = (two.weight > 0).view(2, *one.x.shape).sum(0)
    assert losses.max() == 1
    assert losses.sum() == one.counts.sum()


def network():
    shape = dict(width=32, depth=2, head_dim=16, base_width=32, base_depth=2)
    return models.Transformer(models.ModelConfig(STREAM.vocab, STREAM.places, **shape))


def test_the_loss_is_the_sum_written_out():
    """The sum is divided by all tokens that could have been masked."""
    net = network()
    batch = noised(schedule="cosine", modes={"joint": 1})
    everywhere = torch.ones_like(batch.x).bool()
    logits = net(batch.x, batch.place, batch.doc, everywhere).detach().double()
    logits = logits.unflatten(0, batch.x.shape)
    rows = STREAM.describe(batch.target)
    for term, got in enumerate(diffusion.loss_terms(net, batch).tolist()):
        total = 0.0
        for at in zip(*torch.where((rows.member == term) & (batch.x == MASK))):
            nll = -logits[at][rows.low[at]:rows.high[at]].log_softmax(0)
            total += float(batch.weight[at] * nll[batch.target[at] - rows.low[at]])
        assert got == pytest.approx(total / int((rows.member == term).sum()), rel=1e-5)


class Recorder:
    """An optimizer that keeps the gradients of its step."""

    def __init__(self, net):
        self.net = net

    def step(self):
        self.gradients = [p.grad.clone() for p in self.net.parameters()]


@pytest.mark.parametrize("size", (1, 2, 100))
def test_gradients_of_parts_add_up_to_those_of_the_batch(size):
    net = network()
    batch = noised(complement=True)
    results = []
    for micro_batch in (0, size):
        recorder = Recorder(net)
        config = train.Config(micro_batch=micro_batch)
        plain = autocast(torch.device("cpu"), torch.float32)
        terms, norm = train.train_step(net, [recorder], batch, config, plain)
        results.append([terms, torch.tensor(norm), *recorder.gradients])
    torch.testing.assert_close(*results, atol=1e-6, rtol=1e-4)
    assert all(p.grad is None for p in net.parameters())


def test_the_twin_predicts_every_token_from_those_before_it():
    batch = data.next_tokens(STREAM, ROWS)
    rows = STREAM.describe(ROWS)
    could = rows.member >= 0
    at = batch.weight > 0
    assert torch.equal(batch.x, ROWS)
    assert torch.equal(at, could.roll(-1, 1))  # a row begins with a task
    for got, want in ((batch.target, ROWS), (batch.member, rows.member), (batch.low, rows.low),
                      (batch.high, rows.high)):
        assert torch.equal(got[at], want[could])
    assert torch.equal(batch.counts, torch.bincount(batch.member[at], minlength=len(MEMBERS)))
