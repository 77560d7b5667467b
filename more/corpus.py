"""Passages of your own to search in: a file of them, indexed once, and searched by tantivy.

A line of the file is {"id": "...", "title": "...", "text": "..."}. The index is a folder beside it,
FILE.index, and is used again as long as the file stays as it is.

    pip install -r more/requirements.txt
    python -m more.corpus passages.jsonl "who wrote the master and margarita"
    python train.py --task search --corpus passages.jsonl --data questions.jsonl \\
        --student NAME --teacher NAME
"""
import os
import shutil
import time
import unicodedata
from itertools import count
from pathlib import Path

from tqdm import tqdm

from more.data import check_file, read_lines
from more.search import show_found
from more.terminal import UserError, fail_in_one_line, make_parser

try:
    import tantivy
except ImportError:
    tantivy = None  # open_corpus() says how to get it

PASSAGE = '{"id": "...", "title": "...", "text": "..."}'
MEMORY = 1 << 29  # bytes to sort new passages in, for all threads together


class Corpus:
    """An engine over an index: BM25 over all passages that hold a word of the query."""
    top = 2  # passages shown for a search

    def __init__(self, index, turns=4):
        """index: from open_index(); turns: searches answered in a trajectory."""
        self.turns, self.schema, self.searcher = turns, index.schema, index.searcher()
        self.words_of, self.size = analyzer().analyze, self.searcher.num_docs

    def find(self, query, k):
        """The k best passages for any text: [(id, title, text), ...], the best first.

        A query is data: it is cut into words, at most 50, and each is looked up as it is.
        """
        query = unicodedata.normalize("NFC", query.encode(errors="replace").decode())
        words = dict.fromkeys(self.words_of(query)[:50])
        terms = [tantivy.Query.term_query(self.schema, "passage", word, "freq") for word in words]
        query = tantivy.Query.boolean_query([(tantivy.Occur.Should, term) for term in terms])
        hits = self.searcher.search(query, k, count=False).hits  # a count would look at them all
        found = [self.searcher.doc(address) for _, address in hits]
        return [(doc["id"][0].decode(), *doc["passage"]) for doc in found]


def open_corpus(path, turns=4):
    """A Corpus over a file of passages, indexed first where that has not been done yet.

    Killed while it is indexed, it starts afresh the next time. Raises UserError, naming the file
    and the line.
    """
    if not tantivy:
        raise UserError(f"--corpus {path}: needs tantivy; pip install -r more/requirements.txt")
    check_file(path, "--corpus", PASSAGE)
    folder = Path(f"{path}.index")
    try:
        if folder.is_dir() and not os.access(folder, os.W_OK):  # even readers lock it for a moment
            raise PermissionError("it is read-only")
        if not is_indexed(folder, stamp(path)):
            write_index(path, folder)
        return Corpus(open_index(folder), turns)
    except OSError as e:
        raise UserError(f"--corpus {path}: cannot be read, or {folder} not be written ({e}); give "
                        f"a file with {PASSAGE} a line, in a folder that can be written to")
    except ValueError as e:  # tantivy's own, of what it reads
        why = " ".join(str(e).split())[:200]
        raise UserError(f"{folder}: damaged, or no index ({why}); delete it and start again")


def stamp(path):
    """What tells one state of a file from another: its size, and when it was written."""
    state = os.stat(path)
    return f"{state.st_size} {state.st_mtime_ns}"


def is_indexed(folder, state):
    """Is there a whole index of the file as it is now? ValueError where it is damaged."""
    meta = folder / "meta.json"
    if not (folder / "stamp").is_file():
        return False
    if not meta.is_file():
        raise ValueError("meta.json is missing")
    # tantivy looks at the last bytes of a file only. But meta.json is written last, so none of the
    # files that it names may be newer.
    names = meta.read_text(encoding="utf-8").replace("-", "")
    for file in folder.glob(f"{'?' * 32}.*"):
        if file.stem in names and file.stat().st_mtime_ns > meta.stat().st_mtime_ns:
            raise ValueError(f"{file.name} was written to")
    return (folder / "stamp").read_text(encoding="utf-8") == state


# ------------------------------------------------------------------------------- the index
def analyzer():
    """Cuts a text into words: runs of letters and digits, in lower case; é is e."""
    builder = tantivy.TextAnalyzerBuilder(tantivy.Tokenizer.simple())
    return builder.filter(tantivy.Filter.lowercase()).filter(tantivy.Filter.ascii_fold()).build()


def open_index(folder):
    """The tantivy index in a folder; an empty one where there is none yet."""
    builder = tantivy.SchemaBuilder()
    builder.add_bytes_field("id", stored=True)
    # title and text, two values of one field: BM25 takes them as one text
    builder.add_text_field("passage", stored=True, tokenizer_name="words", index_option="freq")
    index = tantivy.Index(builder.build(), str(folder))
    index.register_tokenizer("words", analyzer())
    index.config_reader("manual")  # it is read as it is now, whoever changes it later
    return index


def write_index(path, folder):
    """Index the whole file, or leave the index as it was. One process at a time does so."""
    others = folder.is_file() or any(folder.glob("[!.]*"))
    if others and not (folder / ".managed.json").exists():
        raise ValueError("something else has this name")
    is_new = not folder.exists()
    folder.mkdir(exist_ok=True)
    writer = wait_for_writer(open_index(folder), path)
    try:
        replace_passages(writer, path, folder)
    except UserError:  # a bad line: nothing of the index is left
        if is_new:
            shutil.rmtree(folder)
        raise
    except ValueError as e:  # tantivy's own, of what it writes
        raise UserError(f"--corpus {path}: its index cannot be written ({e}); it takes as much as "
                        "the file; free some disk and start again")


def replace_passages(writer, path, folder):
    """Write the index anew, unless another process has just done so; let go of the writer."""
    try:
        before = stamp(path)
        if is_indexed(folder, before):
            return
        (folder / "stamp").unlink(missing_ok=True)
        writer.delete_all_documents()
        add_passages(writer, path)
        if stamp(path) != before:
            raise UserError(f"--corpus {path}: it changed while it was indexed; start again")
        writer.commit()  # until here, nobody sees anything of the above
    finally:
        writer.wait_merging_threads()
    (folder / "stamp").write_text(before, encoding="utf-8")


def wait_for_writer(index, path):
    """The index's writer. There is one at a time, whatever the process, until it ends."""
    for attempt in count():
        try:
            return index.writer(MEMORY)
        except ValueError as e:
            if "LockBusy" not in str(e):
                raise
        if attempt == 0:
            print(f"waiting for another process, which is indexing {path}")
        time.sleep(0.2)


def add_passages(writer, path):
    """Add every passage of a file. Raises UserError that names a bad line."""
    number = 0
    with open(path, "rb") as file, tqdm(total=os.path.getsize(path), desc="indexing", unit="B",
                                        unit_scale=True, leave=False) as bar:
        for number, row in read_lines(file, f"--corpus {path}", PASSAGE):
            if not all(isinstance(row[x], (str, int, float)) for x in ("id", "title", "text")):
                raise UserError(f"--corpus {path}, line {number}: its id, title and text must be "
                                f"text; every line must be like {PASSAGE}")
            # A letter and its accent may be one character or two; NFC makes them one.
            title, text = (unicodedata.normalize("NFC", str(row[x])) for x in ("title", "text"))
            writer.add_document(tantivy.Document(id=str(row["id"]).encode(), passage=[title, text]))
            if number % 1000 == 0:
                bar.update(file.tell() - bar.n)
    if not number:
        raise UserError(f"--corpus {path}: no passage in it; write one {PASSAGE} a line")


# ------------------------------------------------------------------------------- a look at it
def main():
    """Index a file of passages, and show what is found in it."""
    parser = make_parser(__doc__)
    parser.add_argument("file", help=f"JSONL of {PASSAGE}")
    parser.add_argument("query", help="words to look up")
    args = parser.parse_args()
    show_found(open_corpus(args.file), args.query)


if __name__ == "__main__":
    fail_in_one_line(main)
