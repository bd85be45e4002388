"""From speech to pictures and back: what becomes of the text between two tasks (our choice).

Speech says "a small red circle", a caption "a small red circle on white". So what was heard begins
a caption, and of a caption only the part is said that speech would say.
"""
import torch

import data
import diffusion
from data import MASK


def begun(run, kind, codes):
    """Rows (B, L) of pairs whose texts begin with these codes, (n,) each; all else is masked."""
    slot = run.stream.slots[kind][1]
    documents = []
    for code in codes:
        code = code[:slot - 1]  # an end has to fit, too
        ids = run.stream.document(kind, [None, None])
        ids[-slot:][:len(code)] = run.stream.to_ids("text", code)
        documents.append(ids)
    return data.stacked(documents)


def captions_from_speech(run, texts):
    """Rows (B, L) of image-text: captions that begin with these texts, for the network to complete;
    evaluations that it cost."""
    codes = run.tokenizers["text"].encode(texts)
    return begun(run, "image-text", codes), 0


@torch.inference_mode()
def end_probability(run, kind, codes):
    """p(a text ends here | it begins like this, nothing else is known), (B,), of the codes of B
    beginnings."""
    rows = run.rows(begun(run, kind, codes))
    masked = (rows.ids == MASK) & rows.of(kind, "text")
    here = masked & (masked.cumsum(1) == 1)  # the first place behind each beginning
    high = rows.high[here]
    logits = run.predict(rows.ids, here)                                  # (B, V)
    nats = diffusion.token_nll(logits, high - 1, rows.low[here], high)
    return torch.exp(-nats).cpu()


def speech_from_captions(run, texts):
    """Rows (B, L) of speech-text that are to say these texts as far as speech would say them;
    evaluations a row.

    The network reads along. Behind the first word where the text of a clip ends, more likely than
    not, the rest is left unsaid.
    """
    slot = run.stream.slots["speech-text"][1]
    beginnings = []
    for text in texts:
        words = text.split(" ")
        beginnings.append([" ".join(words[:k + 1]) for k in range(len(words))])
    codes = run.tokenizers["text"].encode(sum(beginnings, []))
    ends = end_probability(run, "speech-text", codes) > 0.5               # (words of all texts,)
    documents = []
    first = 0
    for end in ends.split([len(some) for some in beginnings]):
        end[-1] = True  # at the last word at the latest
        said = codes[first + int(end.int().argmax())]
        documents.append(run.stream.document("speech-text", [None, said[:slot - 1]]))
        first += len(end)
    return data.stacked(documents), len(codes) / len(texts)


BETWEEN = {"image-text": captions_from_speech, "speech-text": speech_from_captions}
