"""Three tokenizers: text (byte-pair encoding), image and audio (autoencoders with FSQ).

    text.train(texts, vocab_size)              image.train(samples, config, steps), audio likewise
    tokenizer.encode(samples), .decode(codes)  lists of samples <-> lists of int32 arrays (n,)
    tokenizer.save(path), module.load(path)    .json for text, .pt for image and audio
    tokenizer.report(samples)                  figures
    tokenizer.groups, tokenizer.size           position p has a code of group p % groups, below size
    tokenizer.name                             12 hex digits that change whenever the codes could

A sample is a str, a uint8 picture (height, width, channels) or a float32 wave (samples,) at 16 kHz
in [-1, 1].
"""
