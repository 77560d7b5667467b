"""A teacher behind an OpenAI-compatible server: vLLM, llama.cpp, Ollama, a hosted model.

The server is sent text and answers with text. Where it also tells the 20 likeliest tokens at the
place of the digit, the ten probabilities p(k) are read off them. Else /v1/systemone is asked for
them, which `transformers serve` has. Else the digit that it says has probability 1.

The API key is read from TEACHER_API_KEY. Whatever a server says passes safe_words before it is
shown, so that a server which echoes the key does not put it on the screen or into a file.

    python -m more.server http://HOST:PORT/v1 MODEL    # a few attempts: are the scores of any use?
    python train.py --teacher http://HOST:PORT/v1 --teacher-model MODEL
"""
import base64
import html
import json
import math
import os
import re
import time
from functools import partial
from http.client import HTTPException
from itertools import islice
from urllib.error import HTTPError, URLError
from urllib.parse import unquote, urlsplit
from urllib.request import (HTTPDefaultErrorHandler, HTTPErrorProcessor, HTTPHandler, HTTPSHandler,
                            OpenerDirector, ProxyHandler, Request)

import torch
from tqdm import tqdm
from tqdm.contrib.concurrent import thread_map

from more.judge import verdict
from more.reply import parse_reply
from more.safe_text import as_data
from more.terminal import UserError, fail_in_one_line, make_parser
from sample import Trajectory, is_real
from score import Teacher, auc, grading_messages, scores_of
from tasks import Problem, problem_stream


# ------------------------------------------------------------------------------- what may be shown
def shown_url(url):
    """A URL as it may be shown: without user, password and query, which may be secret."""
    parts = re.fullmatch(r"(https?://)([^/?#]*@)?([^\s@/?#]+(?:/[^\s@?#]*)?)([?#][^@]*)?", url)
    return parts[1] + parts[3] if parts else "http://..."


def check_server(url, model_name, task="math"):
    """UserError where a server cannot be asked with these, said before anything is loaded.

    An address loses nothing but secrets.
    """
    try:
        fit = shown_url(url) == url and url.isascii() and url.isprintable() and model_name
        fit = fit and urlsplit(url).hostname and urlsplit(url).port != 0
    except ValueError:  # [ without ], or a port that is no number
        fit = False
    if not fit:
        raise UserError(f"--teacher {shown_url(url)}: a server is given as --teacher "
                        "http://HOST:PORT/v1 --teacher-model NAME, without user, password or "
                        "query; its key is read from TEACHER_API_KEY")
    if task == "search":
        raise UserError("--teacher is a server, which cannot search here; use a folder or a hub "
                        "name")
    read_key()


def read_key():
    """The API key in the environment, "" where there is none. UserError: it cannot be a key."""
    key = os.environ.get("TEACHER_API_KEY", "").strip()  # a file from Windows leaves a \r
    if re.search("[^!-~]", key):
        raise UserError("TEACHER_API_KEY in the environment holds a space, a control character or "
                        "a letter that is not ASCII; set it to the key alone")
    return key


def without_escapes(text):
    """Text with its escapes (\\x41, \\u0041, %41, &#65;) undone and only visible ASCII kept."""
    for _ in range(5):  # an escape may be escaped again
        text = re.sub(r"\\(?:x|u00)([0-9a-fA-F]{2})", lambda m: chr(int(m[1], 16)), text)
        text = html.unescape(unquote(text))
    text = re.sub(r"\\[nrt]|[^!-~]|\\", "", text)
    return text.replace("-", "+").replace("_", "/")  # base64 for URLs writes these


def holds_key(text, key):
    """Does the text hold any eight characters in a row of the key: plain, escaped or in base64?

    A shorter key counts as a whole. An empty one is no secret.
    """
    if not key:
        return False
    forms = [(key, 8), (without_escapes(key), 8)]  # (how it is written, how much of that is secret)
    for before in range(3):  # base64 turns three bytes at a time into four letters
        letters = base64.b64encode(b"?" * before + key.encode()).decode()
        # Of these, the ones that depend on the key alone; any eight bytes determine ten of them.
        letters = letters[math.ceil(8 * before / 6):8 * (before + len(key)) // 6]
        if len(letters) > 5:
            forms.append((without_escapes(letters), 10))
    texts = ["".join(text.split()), without_escapes(text)]
    return any(form[i:i + size] in t for t in texts for form, size in forms
               for i in range(max(1, len(form) - size + 1)))


def safe_words(text, key):
    """Text from outside on one line of at most 160 characters, or not at all where it holds the
    key. Every word of a server, and of a library's error, passes here before it is shown."""
    line = "".join(c if c.isprintable() else " " for c in str(text)[:2000])
    line = " ".join(line.split())
    return "(not shown, it holds a part of the key)" if holds_key(line, key) else line[:160]


def what_failed(error, key):
    """Of a failed request: (how often to try it, pause in s the server asks for, why in a line).

    Refused, it is tried once; timed out, twice; broken off, answered by nonsense or by a server
    that is busy or fails, five times.
    """
    if isinstance(error, URLError) and isinstance(getattr(error, "reason", None), Exception):
        error = error.reason  # what urllib has wrapped
    words, status, pause = str(error), 0, 0
    if isinstance(error, HTTPError):
        status = error.code
        seconds = re.fullmatch("[0-9]{1,9}", error.headers.get("retry-after", ""))
        pause = min(60, int(seconds[0])) if seconds else 0
        try:
            words = error.read(2000).decode(errors="replace") or error.reason
        except (OSError, HTTPException):
            words = error.reason
    refused = 300 <= status < 500 and status not in (408, 429)
    tries = 1 if refused else 2 if isinstance(error, TimeoutError) else 5
    advice = ("; set TEACHER_API_KEY in the environment" if status in (401, 403) else
              "; give the address it redirects to" if 300 <= status < 400 else
              "" if status else "; see that the server is up, and OpenAI-compatible")
    return tries, pause, f"{status or type(error).__name__}: {safe_words(words, key)}{advice}"


# ------------------------------------------------------------------------------- what it answers
def as_probabilities(ten, least=0.99):
    """Ten numbers, made to add up to exactly 1; None where they are no probabilities."""
    fit = all(0 <= p <= 1.01 for p in ten) and least < sum(ten) <= 1.01  # NaN fits nowhere
    return [p / sum(ten) for p in ten] if fit else None


def token_probs(digit, tokens):
    """Ten probabilities where a reply says its digit, a list; None where they are impossible.

    tokens: those of the reply, each with the likeliest ones in its place, as the server tells
    them. Without them, or without one that is the digit alone, the digit has probability 1.
    """
    place = next((t for t in tokens or () if t["token"].strip(" ▁Ġ") == str(digit)), None)
    if not place:
        return [float(k == digit) for k in range(10)]
    ten, likeliest = [0.0] * 10, place.get("top_logprobs") or []
    if all(t["token"] != place["token"] for t in likeliest):
        likeliest = [*likeliest, place]
    for t in likeliest:
        if re.fullmatch("[ ▁Ġ]*[0-9]", t["token"]):  # "7" and " 7" add up, as in score.digit_ids
            ten[int(t["token"][-1])] += math.exp(min(t["logprob"], 9))  # above 0 it is refused
    return as_probabilities(ten, least=0)


def whole_number(value):
    """A number of tokens as a server tells it, 0 where it does not, within reason."""
    return min(max(0, int(value or 0)), 10**6)


# ------------------------------------------------------------------------------- the teacher
class Server(Teacher):
    """A Teacher that is asked over HTTP. A request that fails for good leaves its trajectory
    without a score, and the reason in `why`."""
    AT_ONCE, SECONDS = 16, 300  # requests in flight, and how long to wait for an answer

    def __init__(self, url, model_name, how="expected", max_new_tokens=64):
        """Asks once to find out what the server takes and gives. UserError: it is of no use."""
        super().__init__(None, None, how, max_new_tokens)
        check_server(url, model_name)
        self.url, self.model_name, self.key = url.rstrip("/"), model_name, read_key()
        # No handler for redirects, which would carry the key to another server, and no proxy on
        # the way to this machine. The hub's own client refuses to work offline.
        local = urlsplit(url).hostname in ("localhost", "127.0.0.1", "::1")
        self.opener = OpenerDirector()
        for handler in (ProxyHandler({} if local else None), HTTPHandler(), HTTPSHandler(),
                        HTTPErrorProcessor(), HTTPDefaultErrorHandler()):
            self.opener.add_handler(handler)
        self.source = self.try_out()
        print(f"its scores come from {self.source}")

    def try_out(self):
        """Find the fields that it takes (`extra`) and the best scores that it gives, in words."""
        hello = grading_messages(Problem("1 + 1", "2"), "Answer: 2", "Answer: 2")
        tops = {"logprobs": True, "top_logprobs": 20}
        calm = {"chat_template_kwargs": {"enable_thinking": False}}
        for self.extra in (tops | calm, tops, calm, {}):
            if (reply := self.ask(self.chat, hello)) or self.why[:3] not in ("400", "422"):
                break  # else it was refused, and maybe for a field that this server does not know
        if not reply:
            raise UserError(f"--teacher {self.url}: {self.why}")
        self.read_one = self.read_reply
        if any(len(token.get("top_logprobs") or ()) > 1 for token in reply[2] or ()):
            return "log-probabilities"  # of more than the one token that it said
        if (answer := self.ask(self.read_systemone, hello)) and answer[0]:
            self.read_one = self.read_systemone
            return "/v1/systemone"
        return "its digit alone"

    def ask(self, request, *args):
        """request(*args), tried again where that may help; None, and `why`, if it fails for good.

        Pauses grow from one second to eight, and are as long as the server asks for, up to 60.
        """
        for attempt in range(1, 6):
            try:
                return request(*args)
            except Exception as e:  # several libraries' kinds, and whatever nonsense leads to
                tries, pause, self.why = what_failed(e, self.key)
            if attempt >= tries:
                return None
            time.sleep(max(2 ** (attempt - 1), pause))

    def ask_all(self, request, conversations):
        """self.ask(request, conversation) for each, in order, with no control token in a text."""
        safe = [[{**m, "content": as_data(m["content"])} for m in c] for c in conversations]
        return thread_map(partial(self.ask, request), safe, max_workers=self.AT_ONCE,
                          desc="asking", leave=False, disable=len(safe) < 65 or None)

    def post(self, path, body):
        """What the server answers to a request, JSON both ways."""
        headers = {"authorization": f"Bearer {self.key or 'none'}", "user-agent": "ovd",
                   "content-type": "application/json"}
        data = json.dumps({"model": self.model_name, **body}).encode()
        request = Request(f"{self.url}/{path}", data, headers)
        with self.opener.open(request, timeout=self.SECONDS) as reply:
            return json.load(reply)

    def chat(self, conversation, max_tokens=8):
        """The likeliest reply: (text, whether it stopped, its tokens, how many read, written)."""
        reply = self.post("chat/completions", {
            "messages": conversation, "max_tokens": max_tokens, "temperature": 0.0, **self.extra})
        try:
            choice, used = reply["choices"][0], reply.get("usage") or {}
            words = str(choice["message"].get("content") or "").strip()
            stopped = choice.get("finish_reason") != "length"
            tokens = (choice.get("logprobs") or {}).get("content")
            counts = [whole_number(used.get(f"{kind}_tokens")) for kind in ("prompt", "completion")]
        except (LookupError, TypeError, AttributeError):
            raise ValueError("what it says is no chat completion")
        words = words.encode(errors="replace").decode()  # half an emoji
        if len(self.key) >= 8 and holds_key(words, self.key):
            words, stopped = "", False  # a reply that holds the key is none
        return words, stopped, tokens, *counts

    def read_reply(self, conversation):
        """(ten probabilities, or None where no digit was said; tokens read)."""
        reply, stopped, tokens, read, _ = self.chat(conversation)
        digit = parse_reply(reply, stopped)
        ten = None if digit is None else token_probs(digit, tokens)
        if digit is None:
            self.why = f"no digit in the reply {safe_words(reply[:60], self.key)!r}"
        elif not ten:
            self.why = "its log-probabilities are none, some are above 0 or not numbers"
        return ten, read

    def read_systemone(self, conversation):
        """The same without a reply: the server reads the probabilities off itself."""
        levels = {"type": "score", "criteria": [f"{k} of 9" for k in range(10)]}
        answer = self.post("systemone", {"state": conversation[-1]["content"],
                                         "questions": {"score": levels}})
        ten = answer["answers"]["score"]["probabilities"]
        ten = as_probabilities([float(ten[str(k)]) for k in range(10)])
        if not ten:
            self.why = "its ten probabilities are none, or do not add up to 1"
        return ten, whole_number(answer["usage"]["input_tokens"])

    def read(self, conversations):
        """Ten probabilities for each conversation (B, 10), NaN where there are none, and how many
        tokens were read."""
        answers = [a or (None, 0) for a in self.ask_all(self.read_one, conversations)]
        rows = [ten or [math.nan] * 10 for ten, _ in answers]
        return torch.tensor(rows), sum(tokens for _, tokens in answers)

    def score(self, trajectories, solutions):
        """As Teacher's. Where a solution could not be had, an attempt at that problem has no score.
        """
        had = [(t, s) for t, s in zip(trajectories, solutions) if s.text]
        for t, s in zip(trajectories, solutions):
            if not s.text:
                t.probs, t.score = [], None
        return super().score(*zip(*had)) if had else 0

    def write(self, problems, begun=None):
        """Its own solutions, a Trajectory each; but their token ids are not known, all None."""
        if any(begun or ()):
            raise UserError(f"--teacher {self.url} is a server, which cannot go on from the middle "
                            "of a text; use --replace whole")
        replies = self.ask_all(partial(self.chat, max_tokens=self.max_new_tokens),
                               [p.messages(is_real(None)) for p in problems])
        if replies.count(None) > len(replies) / 2:
            raise UserError(f"--teacher {self.url}: most solutions could not be had; {self.why}")
        if lost := replies.count(None):
            tqdm.write(f"{lost} of {len(replies)} solutions of the teacher's could not be had, and "
                       f"attempts at these problems get no score; {self.why}")
        solutions = []
        for p, reply in zip(problems, replies):
            text, stopped, _, read, n = reply or ("", False, None, 0, 0)
            solutions.append(Trajectory(p, [None] * read, [None] * n, [0.0] * n, ["teacher"] * n,
                                        [1] * n, stopped, text, p.reward(text) * stopped))
        return solutions


# ------------------------------------------------------------------------------- a look at it
def main():
    """Ask a server for the scores of a right and a wrong attempt at each of four problems."""
    parser = make_parser(__doc__)
    parser.add_argument("url", help="http://HOST:PORT/v1")
    parser.add_argument("model", help="the name of the model there")
    args = parser.parse_args()
    server, attempts = Server(args.url, args.model, max_new_tokens=512), []
    for p in islice(problem_stream(0, held_out=True), 4):
        wrong = p.solution.removesuffix(p.answer) + str(int(p.answer) + 1)
        attempts += [Trajectory(p, text=t, reward=p.reward(t)) for t in (p.solution, wrong)]
    began = time.time()
    server.score(attempts, server.solve([t.problem for t in attempts]))
    for t in attempts:
        score = "none" if t.score is None else f"{t.score:4.2f}"
        print(f"  {'right' if t.right else 'wrong'}  S = {score}  {t.text}")
    right, wrong = scores_of(attempts)
    if not right + wrong:
        raise UserError(f"{server.url} gave no score at all; {server.why}")
    print(f"\n{len(right + wrong)} of {len(attempts)} attempts were scored by {args.model} in "
          f"{time.time() - began:.1f} s; a right one scores above a wrong one "
          f"{auc(right, wrong):.0%} of the time: {verdict(auc(right, wrong))}.")


if __name__ == "__main__":
    fail_in_one_line(main)
