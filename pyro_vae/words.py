"""The first numbers of every vocabulary: words that stand for no word."""

PAD, UNKNOWN, START, END = range(4)
SPECIAL = ("<pad>", "<unk>", "<bos>", "<eos>")
