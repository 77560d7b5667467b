"""Asks a student one question of your own, before its training and after it: sample.py --ask.

    python sample.py --student runs/NAME/adapter --ask "Mia has 3 apples. ..."
    python sample.py --ask                           # a question a line, until the input ends

The first answer appears word by word. Then come several samples, each with its probability.
"""
import json
import math
import sys
from pathlib import Path

import torch
from transformers import TextStreamer

from more.checks import check_numbers
from more.data import TextProblem
from more.flags import check_sampling_flags, embedded
from more.machine import pick_device
from more.terminal import UserError, fail_in_one_line, quiet
from sample import load_student, prompt_ids, sample_trajectories, without_lora
from tasks import Problem

SAMPLES = 4  # shown below the first answer


def unknown_words(question, tokenizer):
    """The words of a question for which a tokenizer has nothing but its unknown token."""
    if tokenizer.unk_token_id is None:
        return []
    return [word for word in question.split()
            if tokenizer.unk_token_id in tokenizer.encode(word, add_special_tokens=False)]


@torch.no_grad()
def stream_answer(model, tokenizer, problem, args):
    """Print one answer word by word as it is made, from the full softmax as in training."""
    ids = torch.tensor([prompt_ids(tokenizer, problem)], device=model.device)  # (1, T)
    how = dict(do_sample=True, temperature=args.temperature, top_k=0, top_p=1.0) \
        if args.temperature else dict(do_sample=False)
    how["repetition_penalty"] = 1.0  # many a real model brings another
    check_numbers(model, model(input_ids=ids).logits)
    model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **how,
                   max_new_tokens=args.max_new_tokens, pad_token_id=tokenizer.pad_token_id,
                   streamer=TextStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True))


def kind_of_problem(name):
    """The class of what a student was trained on: TextProblem for --data, which has its prompt."""
    try:
        run = json.loads((Path(name).parent / "run.json").read_text(encoding="utf-8"))
        return TextProblem if run["data"] else Problem
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return Problem


def answer(model, tokenizer, problem, args, title):
    """Print what a student says to a question: one answer streamed, and some more below it."""
    print(f"\n{title}")
    stream_answer(model, tokenizer, problem, args)
    for t in sample_trajectories(model, tokenizer, [problem] * SAMPLES, args.temperature,
                                 args.max_new_tokens):
        print(f"  p = {math.exp(sum(t.logprobs)):.1e}  {t.text}")


def questions(asked):
    """The one question, or what stands in the lines of the input until it ends."""
    try:
        for line in [asked] if asked else sys.stdin:
            line.encode()  # bytes of the command line that are no text are half an emoji here
            if line.strip():
                yield line.strip()
    except UnicodeError as e:
        raise UserError(f"--ask: a question is no text in UTF-8 ({e}); convert it")


def ask(args):
    """Answer the question or questions that sample.py was asked."""
    if args.task != "math":
        raise UserError("--ask is for --task math; a question to search for needs a world")
    check_sampling_flags(args)
    quiet()
    name = args.student or embedded(args.task, "student")
    model, tokenizer, base = load_student(name, args.bits, pick_device())
    torch.manual_seed(args.seed)
    kind = kind_of_problem(name)
    trained, number = (Path(name) / "adapter_config.json").exists(), 0
    for number, question in enumerate(questions(args.ask), 1):
        if words := unknown_words(question, tokenizer):
            print(f"{name} does not know: {' '.join(words)}")
        problem = kind(question, None)
        if trained:
            with without_lora(model):
                answer(model, tokenizer, problem, args, f"before training: {base}")
        answer(model, tokenizer, problem, args, f"now: {name}")
    print(f"\n{number} question{'s' if number != 1 else ''}, {1 + SAMPLES} answers each"
          f"{', before training and after it' if trained else ''}.")


def main():
    """It is a flag of sample.py."""
    raise UserError('more.ask is a flag of sample.py: python sample.py --ask "..."')


if __name__ == "__main__":
    fail_in_one_line(main)
