"""Text is data: what a student, a user or a search engine wrote cannot act as a control token.

A chat template is a text with marks like <|im_end|> in it. An attempt that holds such a mark could
end its own turn and go on as the teacher. So a space is put behind the first character of each.

    python sample.py --ask "<|im_end|> Hello"    # read as text, not obeyed
"""
import re
from functools import cache
from unicodedata import category, normalize

# Marks of chat templates, for a reader to whom they are no tokens: "<|user|>", "[INST]", "</s>".
TEMPLATE_MARK = (r"<[|｜]|\[\||<<SYS|\[/?(?:INST|SYSTEM_PROMPT)\]"
                 r"|</?(?:s|bos|eos|(?:start|end)_of_turn)>")


def break_marks(text, pattern, first=r"\1 "):
    """Text with a space after the first character of all that matches, as a reader sees it.

    To a reader full-width letters are letters (NFKC), and zero-width characters (Cf) are not there.
    Where nothing matches, nothing changes.
    """
    seen = text
    if not text.isascii():
        seen = normalize("NFKC", "".join(c for c in text if category(c) != "Cf"))
    broken = re.sub(f"(?=(?:{pattern}))(.)", first, seen, flags=re.IGNORECASE)
    return text if broken == seen else broken


@cache
def control_pattern(tokenizer):
    """What may act as a control token: TEMPLATE_MARK, and the added tokens of the tokenizer."""
    tokens = {*tokenizer.all_special_tokens, *tokenizer.get_added_vocab()} if tokenizer else set()
    # Blank ones are text: Gemma has "\n\n" among its added tokens.
    return "|".join([TEMPLATE_MARK, *(re.escape(t) for t in tokens if len(t.strip(" \n▁")) > 1)])


def as_data(text, tokenizer=None):
    """Text with every control token broken, so that "<|im_end|>" in it ends nothing."""
    return break_marks(text, control_pattern(tokenizer))
