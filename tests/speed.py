"""How quick are a training step, sampling, and larger batches? By turns with other libraries.

    python tests/speed.py                                      # all three parts
    python tests/speed.py --parts 2 --student Qwen/Qwen3-0.6B  # sampling from another model

1. A step of train.py --method judge beside one of TRL's GRPOTrainer: the embedded pair, NF4, LoRA
   of r = 8, 4 problems x 8 samples, 64 tokens. The teacher has solved all problems before step 1.
2. Tokens a second of sample.generate in 4-bit, unpacked once a batch, beside transformers'
   model.generate, which unpacks for each token, as TRL samples, and unpacked once too; and both in
   16-bit. Batches of 32.
3. Milliseconds a trajectory for several batches and lengths.
In 2 and 3 stop tokens are ruled out: all texts are equally long, whoever samples them.
A ratio is of medians (least..greatest of neighbours). Threads: OMP_NUM_THREADS, or else one.
"""
import csv
import os
import sys
import time
from contextlib import nullcontext, redirect_stderr, redirect_stdout
from importlib.util import find_spec
from io import StringIO
from itertools import islice
from pathlib import Path
from statistics import mean, median
from tempfile import TemporaryDirectory
os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is loaded
sys.path.insert(0, str(Path(__file__).parents[1]))
import torch
import train
from more.flags import embedded
from more.judge import as_reward
from more.machine import pick_device
from more.quick import unpacked
from more.terminal import fail_in_one_line, make_parser, number, quiet
from sample import generate, load_student, prompt_ids, stop_ids
from score import load_teacher
from tasks import Problem, problem_stream
from tqdm import tqdm
from transformers import GenerationConfig, TrainerCallback
STUDENT, TEACHER = embedded("math", "student"), embedded("math", "teacher")
SAMPLES, TOKENS = (8, 32, 128, 256), (32, 64, 128, 256)  # of part 3


def ratio_of(a, b):
    """How many times b is a, with the spread over neighbours, like "1.45 (1.40..1.52)"."""
    each = [x / y for x, y in zip(a, b)]
    return f"{median(a) / median(b):.2f} ({min(each):.2f}..{max(each):.2f})"


def our_steps(args):
    """The seconds of each step of one run of train.py, and the mean rewards: two lists."""
    train.run(args)
    rows = list(csv.DictReader((Path(args.out) / "metrics.csv").read_text().splitlines()))
    return [float(row["seconds"]) for row in rows], [float(row["score"]) / 9 for row in rows]


class Clock(TrainerCallback):
    """Notes how many seconds each step of TRL takes: sampling, scoring and the update."""
    def on_step_begin(self, args, state, control, **kwargs):
        self.began = time.time()

    def on_step_end(self, args, state, control, **kwargs):
        state.seconds = getattr(state, "seconds", []) + [time.time() - self.began]


def trl_steps(args):
    """The same of as many steps of TRL on the same problems."""
    from datasets import Dataset
    from peft import LoraConfig
    from trl import GRPOConfig, GRPOTrainer
    device, problems = pick_device(), list(islice(problem_stream(args.seed), 4 * args.steps))
    teacher, args.teacher = load_teacher(args, None, device, 256), STUDENT
    teacher.solve([Problem(p.question, "") for p in problems])  # as train.py does before step 1
    base = load_teacher(args, None, device)  # the student, in the same 4 bits as train.py's
    config = GRPOConfig(
        args.out, max_steps=args.steps, per_device_train_batch_size=32, num_generations=8,
        max_completion_length=64, top_k=0, learning_rate=args.lr, lr_scheduler_type="constant",
        scale_rewards="none", shuffle_dataset=False, gradient_checkpointing=False, logging_steps=1,
        use_cpu=device == "cpu", bf16=device == "cuda", report_to="none", save_strategy="no")
    rows = [{"prompt": p.messages(), "question": p.question} for p in problems]
    lora = LoraConfig(r=8, lora_alpha=16, target_modules="all-linear")
    trainer = GRPOTrainer(base.model, as_reward(teacher), config, Dataset.from_list(rows),
                          processing_class=base.tokenizer, callbacks=[Clock()], peft_config=lora)
    for p in trainer.model.parameters():  # TRL makes the adapter bfloat16, and ours is float32
        p.data = p.data.float() if p.requires_grad else p.data
    trainer.train()
    return trainer.state.seconds, [r["reward"] for r in trainer.state.log_history if "reward" in r]


def compare_training(args):
    """Part 1. Returns what it came to, in words."""
    if not all(map(find_spec, ("trl", "peft", "datasets"))):
        return "part 1 is skipped, TRL is missing: pip install -r tests/requirements.txt"
    seen = {our_steps: [], trl_steps: []}
    flags = ("--method judge --lr 5e-4 --problems 4 --samples 8 --max-new-tokens 64 --steps 16 "
             "--eval-problems 8").split() + ["--student", STUDENT]
    for way in tqdm(list(seen) * args.repeats, desc="1. training", unit="run"):
        with TemporaryDirectory() as out, redirect_stdout(StringIO()), redirect_stderr(StringIO()):
            seconds, rewards = way(train.parse([*flags, "--teacher", TEACHER, "--out", out]))
        seen[way].append((round(median(seconds), 3), round(mean(rewards), 2)))
    print("1. seconds a step and mean reward, ours:", *seen[our_steps], "TRL:", *seen[trl_steps])
    ours, theirs = ([seconds for seconds, _ in runs] for runs in seen.values())
    return f"a step takes {median(ours):.2f} s, and TRL {ratio_of(theirs, ours)} times as long"


def load_endless(name, bits):
    """(model, tokenizer) of a student whose head is kept from choosing a stop token."""
    model, tokenizer, _ = load_student(name, bits, pick_device())
    stops = list(stop_ids(model, tokenizer))

    def rule_out_stops(layer, inputs, logits):
        logits[..., stops] = -torch.inf
    model.get_output_embeddings().register_forward_hook(rule_out_stops)
    return model, tokenizer


def sample_theirs(model, tokenizer, prompts, tokens):
    """As many tokens for each prompt by model.generate: (B, prompt and tokens)."""
    inputs = tokenizer.pad({"input_ids": prompts}, return_tensors="pt").to(model.device)
    return model.generate(**inputs, generation_config=GenerationConfig(
        do_sample=True, temperature=1.0, top_k=0, top_p=1.0, repetition_penalty=1.0,
        max_new_tokens=tokens, pad_token_id=tokenizer.pad_token_id))


def compare_sampling(args, model, tokenizer, prompts):
    """Part 2. Returns what it came to, in words."""
    wide, _ = load_endless(args.student, 16)
    models = {"ours": model, "ours in 16-bit": wide, "theirs": model, "theirs unpacked": model,
              "theirs in 16-bit": wide}
    rates = {name: [] for name in models}
    turns = list(models) * (args.repeats + 1)
    for i, name in enumerate(tqdm(turns, desc="2. sampling", unit="run")):
        torch.manual_seed(i // len(models))
        what = (models[name], tokenizer, prompts[:32])
        began = time.perf_counter()
        # to unpack takes time too
        with nullcontext() if name == "theirs" else unpacked(what[0], merge=True):
            if name.startswith("ours"):
                generate(*what, 1.0, args.max_new_tokens)
            else:
                sample_theirs(*what, args.max_new_tokens)
        seconds = time.perf_counter() - began
        rates[name].append(round(32 * args.max_new_tokens / seconds))
    print("2. tokens a second (the first of each only warms up):", rates)
    ours, ours_16, theirs, once, theirs_16 = (rate[1:] for rate in rates.values())
    return (f"{median(ours)} tokens a second are sampled in 4-bit, {ratio_of(ours, theirs)} times "
            f"as many as by model.generate, or {ratio_of(ours, once)} times if that unpacks once, "
            f"{ratio_of(ours, ours_16)} times as many as in 16-bit, and "
            f"{ratio_of(ours, theirs_16)} times as many as by model.generate in 16-bit")


def measure_growth(args, model, tokenizer, prompts):
    """Part 3. Returns what it came to, in words."""
    cells = {(n, k): [] for n in SAMPLES for k in TOKENS}
    for n, k in tqdm(list(cells) * args.repeats, desc="3. growth", unit="cell"):
        began = time.perf_counter()
        with unpacked(model, merge=True):
            assert all(len(ids) == k for ids, _ in generate(model, tokenizer, prompts[:n], 1.0, k))
        cells[n, k].append(1000 * (time.perf_counter() - began) / n)
    print("3. ms a trajectory" + "".join(f"{k:6} tokens" for k in TOKENS))
    for n in SAMPLES:
        print(f"   batch of {n:6}" + "".join(f"{median(cells[n, k]):13.1f}" for k in TOKENS))
    row = [median(cells[n, TOKENS[-1]]) for n in SAMPLES]
    rises = "rises" if row[-1] > 1.1 * min(row) else "does not rise"  # a tenth is noise
    return (f"one of {TOKENS[-1]} tokens takes {', '.join(f'{ms:.0f}' for ms in row)} ms in "
            f"batches of {', '.join(map(str, SAMPLES))}: time a trajectory {rises} with the batch")


def main():
    """Measure the parts that are asked for, and say in one sentence what came out."""
    parser, size = make_parser(__doc__), number(int, 1, 10**5)
    a = parser.add_argument
    a("--parts", nargs="+", type=int, choices=[1, 2, 3], default=[1, 2, 3], help="which [all]")
    a("--student", default=STUDENT, help="of parts 2 and 3, a folder or hub name [the embedded]")
    a("--max-new-tokens", type=size, default=64, help="of part 2 [%(default)s]")
    a("--repeats", type=size, default=3, help="turns of each part [%(default)s]")
    args = parser.parse_args()
    quiet()
    said = [compare_training(args)] if 1 in args.parts else []
    model, tokenizer = load_endless(args.student, 4)
    prompts = [prompt_ids(tokenizer, p) for p in islice(problem_stream(0), 32)
               for _ in range(8)]  # 8 of each problem, as in training
    said += [part(args, model, tokenizer, prompts) for i, part in
             ((2, compare_sampling), (3, measure_growth)) if i in args.parts]
    print(f"\nWith {torch.get_num_threads()} thread(s): {'; '.join(said)}.")


if __name__ == "__main__":
    fail_in_one_line(main)
