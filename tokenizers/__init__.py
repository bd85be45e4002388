"""Three tokenizers with one interface: text (byte-pair encoding), image and audio (FSQ autoencoders).

    tok = text.train(samples, ...)       learn one; image.train and audio.train likewise
    tok.encode(samples) -> [int32 (n,)]  ids; tok.decode(ids) -> samples
    tok.save(path), load(path)           .json for text, .pt for image and audio
    tok.report(samples), lines(report)   plain figures, among them a trivial baseline at equal bits
    tok.size, tok.groups                 position p of the stream carries an id of group p % groups, in 0..size-1
    tok.name                             12 hex digits that change whenever the ids could

A sample is a str, a uint8 (H, W, C) picture, or a float32 (samples,) waveform at 16 kHz in [-1, 1].
"""
