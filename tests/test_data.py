"""Stream, documents, rows, batches."""
import numpy as np
import pytest
import torch

import data
import diffusion
import train
from data import FIRST_TASK, KINDS, MASK, MEMBERS, PAD, SPECIALS
from files import DataError
from worlds import assert_law

CODES = {"text": (1, 10), "image": (1, 4), "speech": (2, 6)}
SLOTS = {"text": [30], "image-text": [4, 5], "speech-text": [8, 5]}
STREAM = data.Stream(CODES, SLOTS)
FIRST = {"text": (8, 1), "image": (19, 31), "speech": (24, 35)}  # id and place, by hand


def documents(kind, n):
    """n random documents of a kind."""
    rng = np.random.default_rng(list(KINDS).index(kind))
    made = []
    for _ in range(n):
        codes = {"text": rng.integers(0, 10, rng.integers(1, 5)), "image": rng.integers(0, 4, 4),
                 "speech": rng.integers(0, 6, 2 * rng.integers(1, 4))}
        if kind == "text":
            made += STREAM.texts(rng.integers(0, 10, rng.integers(2, 20)))
        else:
            made.append(STREAM.document(kind, [codes[modality] for modality in KINDS[kind]]))
    return made


DOCUMENTS = {kind: documents(kind, 40) for kind in KINDS}
COUNTS = dict.fromkeys(KINDS, 6)
ROWS = data.Batches(DOCUMENTS, COUNTS, 0)(0)


def test_a_document_by_hand():
    made = STREAM.document("speech-text", [[0, 1, 2, 3], [7, 8]])
    head = [SPECIALS.index("<task speech-text>"), SPECIALS.index("<speech>")]
    speech = [24, 24 + 7 + 1, 24 + 2, 24 + 7 + 3] + [24 + 6, 24 + 13] * 2  # codes and ends
    caption = [SPECIALS.index("<text>"), 8 + 7, 8 + 8] + [8 + 10] * 3
    assert made.tolist() == head + speech + caption
    assert (STREAM.document("image-text", [None, [1]])[2:6] == MASK).all()
    assert STREAM.vocab == 24 + 2 * 7 and STREAM.places == 35 + 8


def test_codes_survive_a_member_up_to_the_first_end_after_whole_steps():
    for modality, codes, slot in (("text", [3, 0, 9], 5), ("text", [], 5),
                                  ("speech", [5, 5, 0, 1], 8), ("image", [3, 2], 2)):
        ids = STREAM.filled(modality, codes, slot)
        assert STREAM.to_codes(modality, ids).tolist() == codes
    ids = STREAM.filled("speech", [5, 4, 3, 2], 8)
    ids[1] = MASK     # reads as 0
    ids[3] = ids[-1]  # an end within the second step of two
    assert STREAM.to_codes("speech", ids).tolist() == [5, 0]
    with pytest.raises(DataError, match="text of 5 tokens does not fit into 5"):
        STREAM.filled("text", [1] * 5, 5)


def test_texts_are_cut_in_order_and_hide_their_length():
    codes = np.arange(70) % 10
    made = STREAM.texts(codes)
    assert [len(d) for d in made] == [32, 32, 2 + 16]  # 10 codes, an end, 5 more ends
    text = np.concatenate([d[2:] for d in made]) - STREAM.start["text"]
    assert text.tolist() == codes.tolist() + [10] * 6


def members(kind):
    """(member, place, low, high) along a document."""
    yield -1, 0, 0, 0  # the task
    for modality, slot in zip(KINDS[kind], SLOTS[kind]):
        first_id, first_place = FIRST[modality]
        groups, size = CODES[modality]
        yield -1, 0, 0, 0  # the boundary
        for i in range(slot):
            low = first_id + i % groups * (size + 1)
            high = low + size + (modality != "image")  # a picture has no end
            yield MEMBERS.index((kind, modality)), first_place + i, low, high


def test_describe_equals_a_walk_along_the_rows():
    """Rows packed, with every second token masked, and one document each with padding."""
    alone = data.stacked([DOCUMENTS[kind][i] for kind in KINDS for i in range(5)])
    hide = (ROWS >= len(SPECIALS)) & (torch.arange(ROWS.shape[1]) % 2 == 0)
    for rows in (ROWS, ROWS.masked_fill(hide, MASK), alone):
        got = STREAM.describe(rows)
        fields = torch.stack((got.member, got.place, got.low, got.high, got.doc), -1)
        number = -1
        for token, found in zip(rows.flatten().tolist(), fields.flatten(0, 1).tolist()):
            if token == PAD:
                assert found[0] == found[4] == -1
                continue
            if FIRST_TASK <= token < FIRST_TASK + len(KINDS):
                number += 1
                rest = members(list(KINDS)[token - FIRST_TASK])
            assert found == [*next(rest), number]


def found(rows):
    """The documents in rows, as sorted lists of ids."""
    doc = STREAM.describe(rows).doc
    return sorted(rows[doc == number].tolist() for number in range(int(doc.max()) + 1))


def test_rows_hold_the_documents_of_their_step_and_are_a_function_of_seed_and_step():
    made = data.Batches(DOCUMENTS, COUNTS, 0)
    for step in range(8):
        rows = made(step)
        assert rows.shape == (made.row_count, made.length)
        assert found(rows) == sorted(document.tolist() for document in made.drawn(step))
        assert (rows == PAD).double().mean() < 0.25
    assert torch.equal(data.Batches(DOCUMENTS, COUNTS, 0)(7), rows)
    assert not torch.equal(made(6), rows)
    assert found(data.Batches(DOCUMENTS, COUNTS, 1)(7)) != found(rows)


def test_each_kind_goes_through_shuffled_epochs_of_its_own():
    texts = [[i] * 3 for i in range(40)]
    pairs = [[100 + i] * 5 for i in range(10)]
    made = data.Batches({"text": texts, "image-text": pairs}, {"text": 15, "image-text": 4}, 0)
    drawn = [int(document[0]) for step in range(8) for document in made.drawn(step)]
    for first, size in ((0, 40), (100, 10)):
        numbers = [n for n in drawn if (n < 100) == (first < 100)]
        epochs = [numbers[i * size:(i + 1) * size] for i in range(3)]
        assert all(sorted(epoch) == list(range(first, first + size)) for epoch in epochs)
        assert epochs[0] != epochs[1] != epochs[2] != sorted(epochs[2])


def test_kinds_have_their_shares_of_the_tokens():
    mix = {"text": 1, "image-text": 2, "speech-text": 1}
    counts = data.documents_per_step(DOCUMENTS, mix, 4096)
    for kind, count in counts.items():
        tokens = count * data.lengths(DOCUMENTS[kind]).mean()
        assert tokens == pytest.approx(4096 * mix[kind] / 4, rel=0.02)
    assert set(data.documents_per_step(DOCUMENTS, mix, 1).values()) == {1}


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
    assert_law(drawn, [modes.get(mode, 0) for mode in diffusion.PAIR_MODES])


def test_times_move_within_their_strata():
    draws = [data.document_noise(np.zeros(4, int), train.Config(), data.rng(i))[0]
             for i in range(2000)]
    assert_law(torch.histc(torch.cat(draws), 16, 0, 1), np.ones(16))


def noised(step=0, **changes):
    return data.noised_batch(STREAM, ROWS, train.Config(**changes), step)


def test_noise_is_a_function_of_seed_and_step_and_complement_adds_the_other_view():
    one = noised(modes={"joint": 1})
    rows = STREAM.describe(ROWS)
    for name in ("place", "doc", "low", "high"):
        assert torch.equal(getattr(one, name), getattr(rows, name))
    could = rows.member >= 0
    assert torch.equal(one.member[could], rows.member[could]) and torch.equal(one.target, ROWS)
    assert torch.equal(one.counts, torch.bincount(rows.member[could]))
    assert torch.equal(one.x, noised(modes={"joint": 1}).x)
    for other in (noised(6), noised(seed=1)):
        assert not torch.equal(noised().x, other.x)
    two = noised(modes={"joint": 1}, complement=True)
    assert torch.equal(two.x.chunk(2)[0], one.x)
    assert torch.equal(two.target, ROWS.repeat(2, 1)) and torch.equal(two.counts, 2 * one.counts)
    assert torch.equal((two.weight > 0).view(2, *ROWS.shape).sum(0), could.long())


def test_schedule_and_weighting_reach_the_batch():
    linear = noised(modes={"joint": 1}, weighting={"image-text": "unweighted"})
    pair = (linear.member == 1) | (linear.member == 2)
    at = linear.weight > 0
    assert (linear.weight[at & pair] == 2).all() and (linear.weight[at & ~pair] != 2).all()
    cosine = noised(modes={"joint": 1}, schedule="cosine")  # hides these, and more
    assert ((cosine.x == MASK) | (linear.x != MASK)).all() and not cosine.x.equal(linear.x)


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
