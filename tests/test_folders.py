"""One's own folders: every way in which they may look, and every fault that they may have."""
import json
import os
import unicodedata

import numpy as np
import pytest
import soundfile
from PIL import Image

import train
from files import DataError
from sources import digest, folders, prepare

TEXT = "To be or not to be, that is the question. " * 5


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8"))


def pictures(folder, names=("p0.png", "p1.png"), text="a caption", sizes=((16, 12),) * 5):
    """Pictures, ever more red, with a .txt each."""
    for i, (name, size) in enumerate(zip(names, sizes)):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", size, (10 * i, 0, 0)).save(folder / name)
        if text:
            write((folder / name).with_suffix(".txt"), f"{text} {i}")


def tone(pitch=440, seconds=0.5, rate=16000):
    return 0.3 * np.sin(2 * np.pi * pitch * np.arange(int(seconds * rate)) / rate)


def clip(path, wave=None, rate=16000, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    if wave is None:
        wave = tone(300 + 100 * len(list(path.parent.iterdir())))
    soundfile.write(path, wave, rate, **options)


def listed(folder, rows):
    """A metadata.jsonl of {name: text}."""
    lines = [json.dumps({"file_name": name, "text": text}) for name, text in rows.items()]
    write(folder / "metadata.jsonl", "\n".join(lines))


def refused(read, *args):
    """The one line with which data are refused."""
    with pytest.raises(DataError) as error:
        read(*args)
    assert "\n" not in str(error.value)
    return str(error.value)


CLIP_METADATA = {
    "ids": "c0|one two\nc1|three\n", "upper case": "C0.WAV|one two\nC1|three\n",
    "LJSpeech": "c0|1 2|one two\nc1|3|three\n", "no raw texts": "c0||one two\nc1||three\n",
    "speakers": "c0|ann|one two\nc1|ann|three\n", "behind": "c0|one two|ann\nc1|three|ann\n",
    "VITS from above": "data/wavs/c0.wav|0|one two\ndata/wavs/c1.wav|0|three\n",
    "coqui": "audio_file|text|speaker_name\nwavs/c0.wav|one two|ann\nwavs/c1.wav|three|ann\n",
    "columns in another order": "Transcription|Emotion|ID\none two|glad|c0\nthree|sad|c1\n",
    "Windows, blanks": "\ufeff c0|  one two\r\nwavs\\c1.wav\t| three \r\n\r\n",
    "seconds behind": "c0|one two|3.21\nc1|three|1.5\n",
    "pandas with an index": ",file_name,transcription\n0,c0.wav,one two\n1,c1.wav,three\n",
}


@pytest.mark.parametrize("case", CLIP_METADATA)
def test_metadata_csv_as_people_write_them(case, tmp_path):
    folder = tmp_path / "data"
    clip(folder / "wavs" / "c0.wav")
    clip(folder / "wavs" / "c1.wav")
    write(folder / "metadata.csv", CLIP_METADATA[case])
    source = folders.read_speech([folder])
    assert source.texts == ["one two", "three"]
    assert source.keys[0] == digest(source.load([0])[0])
    np.testing.assert_allclose(source.load([1])[0], soundfile.read(folder / "wavs/c1.wav")[0])


def test_what_is_told_twice_or_by_no_header_is_refused(tmp_path):
    """Which column has the texts, which text a clip has."""
    for i in range(2):
        clip(tmp_path / f"c{i}.wav")
    write(tmp_path / "metadata.csv", "c0|hello there|ann\nc1|good day|bob\n")
    assert "two columns may be the texts" in refused(folders.read_speech, [tmp_path])
    write(tmp_path / "metadata.csv", "c0|ann|7\nc1|bob|3\n")
    assert "two columns may be the texts" in refused(folders.read_speech, [tmp_path])
    write(tmp_path / "metadata.csv", "c0|one\nc0|two\nc1|three\n")
    assert "c0.wav: has two transcripts" in refused(folders.read_speech, [tmp_path])


@pytest.mark.parametrize("kind", ["wav", "aiff", "au", "mp3"])
def test_a_clip_that_was_cut_is_refused(kind, tmp_path):
    path = tmp_path / f"a.{kind}"
    clip(path, tone(seconds=2))
    assert len(folders.open_clip(path)) == pytest.approx(32_000, rel=0.02)
    path.write_bytes(path.read_bytes()[:len(path.read_bytes()) // 2])
    assert "ends before its header says" in refused(folders.open_clip, path)


def test_quotes_are_those_of_a_csv_writer_or_of_the_text(tmp_path):
    for i in range(5):
        clip(tmp_path / f"wavs/c{i}.wav")
    write(tmp_path / "metadata.csv", 'c0|"He said ""one"", then left"\nc1|"Yes," he said\n'
                                     'c2|"an open\nc3|close"\nc4|"a|b"\n')
    texts = folders.read_speech([tmp_path]).texts
    assert texts == ['He said "one", then left', '"Yes," he said', '"an open', 'close"', "a|b"]


PICTURE_METADATA = {
    "metadata.jsonl": '{"file_name": "sub/p0.png", "text": "a b"}\n'
                      '{"file_name": "sub\\\\p1.png", "text": " c "}\n',
    "metadata.csv": 'file_name, text\nsub/p0.png, "a\nb"\nsub/p1.png,c\n',
    "train/metadata.jsonl": '{"image": "sub/p0.png", "caption": "a b"}\n'
                            '{"image": "sub/p1.png", "caption": "c"}\n',
}


@pytest.mark.parametrize("case", PICTURE_METADATA)
def test_image_folders(case, tmp_path, capsys):
    metadata = tmp_path / case
    write(metadata, PICTURE_METADATA[case])
    pictures(metadata.parent / "sub", ("p0.png", "p1.png", "p2.png"), None)
    write(tmp_path / "test" / "p0.png", b"x")
    source = folders.read_images([tmp_path])
    assert source.texts == ["a b", "c"]
    assert np.array_equal(source.load([1])[0], np.full((12, 12, 3), (10, 0, 0)))
    assert "left aside: 2 .png" in capsys.readouterr().out  # p2 and that of test


def test_every_line_beside_a_picture_is_a_caption_and_of_a_clip_all_are_one(tmp_path):
    pictures(tmp_path, ("P0.JPG", "sub/p1.webp"))
    (tmp_path / "P0.txt").rename(tmp_path / "P0.TXT")
    write(tmp_path / "sub/p1.txt", "\ufeffone\r\n\n two \nthree\n")
    clip(tmp_path / "sub/p1.wav")
    source = folders.read_images([tmp_path])
    assert source.texts == ["a caption 0", "one", "two", "three"]
    assert len(set(source.keys)) == 2, "captions of one picture must not be split"
    assert np.array_equal(source.load([1])[0], source.load([3])[0])
    assert folders.read_speech([tmp_path]).texts == ["one two three"]
    pictures(tmp_path / "b", text="other")
    source = folders.read_images([tmp_path / "b", tmp_path / "sub"])  # in this order
    assert source.texts == ["other 0", "other 1", "one", "two", "three"]


def test_a_caption_is_that_of_the_picture_whose_name_it_has(tmp_path):
    pictures(tmp_path, ("A.png", "a.png"), None)
    write(tmp_path / "a.txt", "the second")
    assert "A.txt is missing" in refused(folders.read_images, [tmp_path])
    source = folders.read_images([tmp_path], skip_bad=True)
    assert source.texts == ["the second"] and source.load([0])[0][0, 0, 0] == 10


def test_names_are_found_however_accents_are_stored(tmp_path):
    stored, typed = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))
    pictures(tmp_path, (f"{stored}.png",), None)
    write(tmp_path / f"{typed}.txt", "coffee")
    assert folders.read_images([tmp_path]).texts == ["coffee"]
    listed(tmp_path, {f"{typed}.png": "tea"})
    assert folders.read_images([tmp_path]).texts == ["tea"]


def test_hidden_files_are_not_read_and_copies_have_equal_keys(tmp_path, capsys):
    for folder in ("", ".ipynb_checkpoints", "copy"):
        pictures(tmp_path / folder)
        write(tmp_path / folder / "a.heic", b"x")
    pictures(tmp_path, ("._p0.png",))
    source = folders.read_images([tmp_path])
    assert "left aside: 2 .heic" in capsys.readouterr().out
    assert len(source) == 4 and len(set(source.keys)) == 2


def test_links_are_followed_and_metadata_lead_nowhere_else(tmp_path):
    pictures(tmp_path / "store")
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "more").symlink_to(tmp_path / "store")
    (tmp_path / "store" / "back").symlink_to(folder)
    (folder / "q.png").symlink_to(tmp_path / "store" / "p0.png")
    write(folder / "q.txt", "a link")
    assert folders.read_images([folder]).texts == ["a caption 0", "a caption 1", "a link"]
    (folder / "lost.png").symlink_to("nowhere")
    write(folder / "lost.txt", "a lost link")
    assert "lost.png: a link to a file that is missing" in refused(folders.read_images, [folder])
    names = ["q.png", "more/p1.png", "../store/p0.png", str(tmp_path / "store/p0.png")]
    listed(folder, dict.fromkeys(names, "x"))
    assert refused(folders.read_images, [folder]).count("lies outside the folder") == 2


def test_names_that_are_not_utf8_and_hostile_texts_are_printed_as_text(tmp_path, capsys):
    name = os.fsdecode(b"caf\xe9")
    write(tmp_path / f"{name}.txt", TEXT)
    source = folders.read_text([tmp_path / f"{name}.txt"])
    assert source.name.encode("utf-8").endswith(b"\\udce9.txt'")
    pictures(tmp_path / name, (f"{name}.png", "p1.png"), "\x1b[31m red")
    assert len(folders.read_images([tmp_path / name])) == 2
    printed = capsys.readouterr().out
    assert printed.encode("utf-8").count(b"\n") == 2 and r"'\x1b[31m red 0'" in printed


def test_the_side_is_that_of_most_listed_pictures(tmp_path):
    sizes = [(side, side + 9) for side in (50, 50, 50, 1, 400)]
    pictures(tmp_path, [f"p{i}.png" for i in range(5)], sizes=sizes)
    assert folders.read_images([tmp_path]).load([0])[0].shape == (48, 48, 3)
    assert folders.read_images([tmp_path], side=20).load([4])[0].shape == (20, 20, 3)
    assert folders.picture_format([tmp_path / "p4.png"]) == (64, 3)
    Image.new("L", (30, 31)).save(tmp_path / "grey.png")
    assert folders.picture_format([tmp_path / "grey.png"], patch=8) == (24, 1)
    Image.new("LAB", (30, 31)).save(tmp_path / "lab.tif")
    assert folders.picture_format([tmp_path / "lab.tif"], patch=8) == (24, 3)


MODES = {"RGBA": ((255, 0, 0, 0), 255), "L": (100, 100), "LA": ((50, 255), 50), "1": (1, 255),
         "I;16": (257 * 77, 77)}  # a value, and the red that is read


def test_pictures_of_every_mode_and_brightness_as_the_format_says(tmp_path):
    for mode, (value, red) in MODES.items():
        for path in (tmp_path / "a.png", tmp_path / "a.tif"):
            Image.new(mode, (6, 6), value).save(path)
            read = folders.open_picture(path, 4, 3)
            assert read.shape == (4, 4, 3) and read[0, 0, 0] == red, (mode, path)
    turned = Image.fromarray(np.repeat([[0], [60_000]], 2, 1).astype(np.uint16))
    turned.getexif()[0x112] = 3  # upside down
    turned.save(tmp_path / "b.png", exif=turned.getexif())
    assert folders.open_picture(tmp_path / "b.png", 2, 1)[:, 0, 0].tolist() == [233, 0]
    half = np.full((6, 6), 2048, ">u2").tobytes()
    write(tmp_path / "a.pgm", b"P5 6 6 4095\n" + half)
    assert folders.open_picture(tmp_path / "a.pgm", 4, 1)[0, 0, 0] == 127
    for dtype in (np.float32, np.int32):
        Image.fromarray(np.ones((6, 6), dtype)).save(tmp_path / "a.tif")
        line = refused(folders.open_picture, tmp_path / "a.tif", 4, 1)
        assert "a.tif: holds floats or 32-bit integers" in line


def test_clips_are_mixed_down_and_resampled_and_a_header_need_not_know_the_length(tmp_path):
    clip(tmp_path / "a.wav", np.stack([tone(rate=8000), 0 * tone(rate=8000)], 1), 8000)
    wave = folders.open_clip(tmp_path / "a.wav")
    assert wave.dtype == np.float32 and np.abs(wave - 0.5 * tone())[500:-500].max() < 1e-3
    clip(tmp_path / "a.flac", tone(seconds=5))
    content = bytearray((tmp_path / "a.flac").read_bytes())
    content[21] &= 0xF0  # 36 bits of STREAMINFO: the number of samples, 0 if it is unknown
    content[22:26] = bytes(4)
    write(tmp_path / "a.flac", bytes(content))
    np.testing.assert_allclose(folders.open_clip(tmp_path / "a.flac"), tone(seconds=5), atol=1e-4)


BAD_CLIPS = [
    (tone() * 32768, "full scale is 1"), (np.append(tone(), np.inf), "no numbers"),
    (tone() * 0, "is silent"), (np.stack([tone(), -0.999 * tone()], 1), "silent as one channel"),
    (tone()[:1000], "lasts 0.06 s, under 0.1 s"), (tone(seconds=21), "lasts over 20 s"),
]


def test_clips_that_cannot_be_used(tmp_path):
    for wave, why in BAD_CLIPS:
        clip(tmp_path / "a.wav", wave, subtype="FLOAT")
        line = refused(folders.open_clip, tmp_path / "a.wav")
        assert "a.wav: " in line and why in line


def test_documents_of_files_and_folders(tmp_path):
    write(tmp_path / "a/one.txt", f"\ufeff{TEXT}\r\nend\r\n")
    write(tmp_path / "a/sub/TWO.TXT", "Zwölf")
    write(tmp_path / "a/empty.txt", " \n")
    write(tmp_path / "a/not.md", "none")
    write(tmp_path / "b.md", "three")
    source = folders.read_text([tmp_path / "a", tmp_path / "b.md"])
    assert source.texts == [f"{TEXT}\nend", "Zwölf", "three"]
    assert source.keys == [digest(text) for text in source.texts]


def test_what_is_no_text_is_refused(tmp_path):
    for content, why in (("a", "1 character(s) in all"), (b"caf\xe9" * 100, "not UTF-8"),
                         (TEXT.encode("utf-16-le"), "NUL characters")):
        write(tmp_path / "a b.txt", content)
        line = refused(folders.read_text, [tmp_path / "a b.txt"])
        assert why in line and "a b.txt'" in line


def test_long_texts_are_cut_where_lines_end_and_short_ones_never():
    lines = "".join(f"line {n} of the book\n" for n in range(600))
    for book, ends in ((lines, "\n"), (lines.replace("\n", " "), " "), ("a" * 9000, "a")):
        parts = prepare.sections([book])
        assert "".join(parts) == book and 30 < len(parts) <= 101
        assert all(part.endswith(ends) for part in parts)
    poems = ["a poem of some length " * 10] * 60
    assert prepare.sections(poems) == poems


BAD_ITEMS = [
    ("p0.png, a thing", "metadata.jsonl:2: not {"),
    ('{"file_name": "p0.png", "text": null}', "metadata.jsonl:2: not {"),
    ('{"file_name": "p0.png", "text": " "}', "p0.png: its text is empty"),
    ('{"file_name": "p0.png", "text": "%s"}' % ("x" * 301), "301 characters, over 300"),
    (r'{"file_name": "p0.png", "text": "\ud800"}', "p0.png: its text holds halves"),
    (r'{"file_name": "p0.png", "text": "a\u0000"}', "p0.png: its text holds NUL"),
    ('{"file_name": "q.png", "text": "b"}', "q.png: no such file"),
    ('{"file_name": "x.png", "text": "b"}', "x.png: cannot be read as a picture"),
]


def test_items_that_cannot_be_used_are_named(tmp_path):
    pictures(tmp_path, text=None)
    write(tmp_path / "x.png", b"x")
    for row, why in BAD_ITEMS:
        write(tmp_path / "metadata.jsonl", '{"file_name": "p1.png", "text": "good"}\n' + row)
        line = refused(folders.read_images, [tmp_path])
        assert line.startswith("--images: 1 of 2 items cannot be used (") and why in line
        assert folders.read_images([tmp_path], skip_bad=True).texts == ["good"]


def test_faults_of_whole_folders_are_told(tmp_path):
    write(tmp_path / "a.txt", TEXT)
    line = refused(folders.read_text, ["no where.txt"])
    assert line == "--text 'no where.txt': No such file or directory"
    assert "holds no item with a text, but 1 .txt" in refused(folders.read_images, [tmp_path])
    write(tmp_path / "metadata.csv", "c0, a word\n")
    assert "neither id|text nor" in refused(folders.read_speech, [tmp_path])
    write(tmp_path / "metadata.csv", "c0|a word\nc1|a|b\n")
    assert "c1: has 3 column(s), not 2" in refused(folders.read_speech, [tmp_path])
    clip(tmp_path / "wavs/c0.wav")
    clip(tmp_path / "wavs/c0.flac")
    assert "two files of that name" in refused(folders.read_speech, [tmp_path])
    write(tmp_path / "metadata.csv", b"c0|caf\xe9")
    assert "metadata.csv: not UTF-8" in refused(folders.read_speech, [tmp_path])


def test_pictures_need_texts_of_their_own_and_one_cannot_be_held_out(tmp_path):
    for folder in (tmp_path, tmp_path / "copy"):
        pictures(folder, ("p0.png",))
    assert "two or more" in refused(prepare.sources_of, train.Config(images=[tmp_path]))
    pictures(tmp_path, ("p0.gif",))
    assert "p0.png: a second file beside p0.txt" in refused(folders.read_images, [tmp_path])


def test_unreadable_files_are_named_and_may_be_left_out(tmp_path, monkeypatch, capsys):
    pictures(tmp_path, ("p0.png", "p1.png", "p2.png", "closed/p3.png"))

    def guarded(function):
        def called(path, *args):
            if str(path).endswith(("closed", "p1.txt")):
                raise PermissionError(13, "Permission denied", path)
            return function(path, *args)
        return called

    monkeypatch.setattr(folders.os, "listdir", guarded(os.listdir))
    monkeypatch.setattr(folders, "open", guarded(open), raising=False)
    line = refused(folders.read_images, [tmp_path])
    assert "2 of 4 items" in line and line.count("Permission denied") == 2
    assert "closed: Permission" in line and "p1.txt: Permission" in line
    assert folders.read_images([tmp_path], skip_bad=True).texts == ["a caption 0", "a caption 2"]
    assert "2 of 4 items cannot be used" in capsys.readouterr().out
