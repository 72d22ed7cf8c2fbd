"""The digest of a tokenizer is equal exactly where token ids are equal, whatever files it was loaded from."""

import json
import logging
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeAlias

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from zrelay_shared.chat_templates import read_chat_template
from zrelay_shared.errors import CheckpointError
from zrelay_shared.tokenizer import (
    TokenizerIdentity,
    check_rows,
    identify_tokenizer,
    load_tokenizer,
    padding_id,
    template_digest,
    tokenizer_digest,
)
from zrelay_shared.tokenizer_files import check_tokenizer

DEMO = Path(__file__).parents[2] / "demo/zrelay_demo/checkpoint/tokenizer"
DEMO_DIGEST = "d284d0166f10fc1bcb648178d668256537c538e15471501074b94dae3c54065a"
DEMO_TEMPLATE_DIGEST = "5cf7a2bebdc668e65df89b08edd84cdd1b1aa9cafd16fdec811416abbfade49a"
"""Recorded with transformers 5.0.0 and 5.23.0, and equal to what zrelay 0.1.0 computes."""

Json: TypeAlias = dict[str, Any]
Edit: TypeAlias = Callable[[Path], None]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(DEMO, tmp_path / "tokenizer"))


def load(folder: Path) -> Any:
    check_tokenizer(folder, "")
    return load_tokenizer(folder, read_chat_template(folder, ""))


def identity(folder: Path) -> TokenizerIdentity:
    return identify_tokenizer(load(folder))


def digest(folder: Path) -> str:
    return tokenizer_digest(load(folder))


def change(file: str, edit: Callable[[Json], object], *, base: Json | None = None) -> Edit:
    """Returns an edit of one JSON file; a file that does not exist starts as `base`."""

    def apply(folder: Path) -> None:
        path = folder / file
        content: Json = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else dict(base or {})
        edit(content)
        path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")

    return apply


def config(edit: Callable[[Json], object]) -> Edit:
    return change("tokenizer_config.json", edit)


def fast(edit: Callable[[Json], object]) -> Edit:
    return change("tokenizer.json", edit)


def settings(**values: object) -> Edit:
    return config(lambda content: content.update(values))


def model(**values: object) -> Edit:
    return fast(lambda content: content["model"].update(values))


def byte_level(**values: object) -> Edit:
    return fast(lambda content: content["pre_tokenizer"]["pretokenizers"][-1].update(values))


def text(file: str, edit: Callable[[str], str], encoding: str = "utf-8") -> Edit:
    """Returns an edit of the text of a file."""

    def apply(folder: Path) -> None:
        path = folder / file
        path.write_text(edit(path.read_text(encoding="utf-8")), encoding=encoding)

    return apply


def without(*names: str) -> Edit:
    def apply(folder: Path) -> None:
        for name in names:
            (folder / name).unlink()

    return apply


def all_of(*edits: Edit) -> Edit:
    def apply(folder: Path) -> None:
        for edit in edits:
            edit(folder)

    return apply


def added_tokens(edit: Callable[[Json], object]) -> Edit:
    """Returns an edit of each added token, in both files that hold them."""

    def of_fast(content: Json) -> None:
        for token in content["added_tokens"]:
            edit(token)

    def of_config(content: Json) -> None:
        for token in content["added_tokens_decoder"].values():
            edit(token)

    return all_of(fast(of_fast), config(of_config))


def reordered(content: Json) -> None:
    items = list(content.items())
    content.clear()
    content.update(reversed(items))


def as_words(content: Json) -> None:
    merges = content["model"]["merges"]
    content["model"]["merges"] = [pair if isinstance(pair, str) else " ".join(pair) for pair in merges]


def swap(content: Json) -> None:
    vocabulary = content["model"]["vocab"]
    first, second, *_ = vocabulary
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]


def saved_again(folder: Path) -> None:
    again = folder.with_name("again")
    load(folder).save_pretrained(again)
    shutil.rmtree(folder)
    again.rename(folder)


def older_layout(folder: Path) -> None:
    """Writes the added tokens as old versions of transformers did: in added_tokens.json and special_tokens_map.json."""
    path = folder / "tokenizer_config.json"
    content: Json = json.loads(path.read_text())
    tokens: Json = content.pop("added_tokens_decoder")
    path.write_text(json.dumps(content))
    special = [token["content"] for token in tokens.values() if token["special"]]
    (folder / "added_tokens.json").write_text(json.dumps({t["content"]: int(key) for key, t in tokens.items()}))
    (folder / "special_tokens_map.json").write_text(json.dumps({"additional_special_tokens": special}))


def demo_tokens() -> dict[str, int]:
    tokenizer: Json = json.loads((DEMO / "tokenizer.json").read_text())
    return {token["content"]: token["id"] for token in tokenizer["added_tokens"]}


def listed_as_well(file: str, *, generic: bool = False) -> Edit:
    """Returns an edit that lists the added tokens in the vocabulary too, with their ids."""
    tokens = {
        token["content"]: token["id"] for token in json.loads((DEMO / "tokenizer.json").read_text())["added_tokens"]
    }
    if file == "vocab.json":
        return all_of(change(file, lambda content: content.update(tokens)), without("tokenizer.json"))
    return all_of(fast(lambda content: content["model"]["vocab"].update(tokens)), *([GENERIC] if generic else []))


def plain_token(content: str, *, merged: bool = False, listed: bool = False, **flags: bool) -> Edit:
    """Returns an edit that adds a token of two characters, and if wanted a merge that leads to it."""

    def add(tokenizer: Json) -> None:
        flagged = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": False}
        tokenizer["added_tokens"].append({"id": 746, "content": content} | flagged | flags)
        if merged:
            tokenizer["model"]["merges"].append(list(content))
        if merged or listed:
            tokenizer["model"]["vocab"].update(demo_tokens() | {content: 746})

    return all_of(GENERIC, fast(add))


PADDING = {
    "strategy": {"Fixed": 9},
    "direction": "Left",
    "pad_to_multiple_of": None,
    "pad_id": 1,
    "pad_type_id": 0,
    "pad_token": "a",
}
TRUNCATION = {"direction": "Right", "max_length": 1, "strategy": "LongestFirst", "stride": 0}
MARKED = {
    "type": "TemplateProcessing",
    "single": [{"SpecialToken": {"id": "!", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
    "pair": [],
    "special_tokens": {"!": {"id": "!", "ids": [0], "tokens": ["!"]}},
}
EACH_CHARACTER = {"type": "Split", "pattern": {"Regex": "."}, "behavior": "Isolated", "invert": False}
TWICE_NFC = {"type": "Sequence", "normalizers": [{"type": "NFC"}, {"type": "NFC"}]}
NFC_LOWER_NFC = {"type": "Sequence", "normalizers": [{"type": "NFC"}, {"type": "Lowercase"}, {"type": "NFC"}]}
NESTED_NFC = {"type": "Sequence", "normalizers": [{"type": "Sequence", "normalizers": []}, {"type": "NFC"}]}
GENERIC = settings(tokenizer_class="PreTrainedTokenizerFast")

SAME: dict[str, Edit] = {
    "nothing": all_of(),
    "no fast file": without("tokenizer.json"),
    "no slow files": without("vocab.json", "merges.txt"),
    "slow files without a version": all_of(
        without("tokenizer.json"), text("merges.txt", lambda content: content.split("\n", 1)[1])
    ),
    "slow files with Windows line ends": all_of(
        without("tokenizer.json"), text("merges.txt", lambda content: content.replace("\n", "\r\n"))
    ),
    "merges as words": fast(as_words),
    "other key order": all_of(fast(reordered), config(reordered)),
    "saved by transformers": saved_again,
    "slow files saved by transformers": all_of(without("tokenizer.json"), saved_again),
    "class of version 4": settings(tokenizer_class="Qwen2TokenizerFast"),
    "no class": settings(tokenizer_class=None),
    "generic class": GENERIC,
    "generic class of version 5": settings(tokenizer_class="TokenizersBackend"),
    "padding": fast(lambda content: content.update(padding=PADDING)),
    "truncation": fast(lambda content: content.update(truncation=TRUNCATION)),
    "decoder": fast(lambda content: content.update(decoder=None)),
    "decoding and limits": settings(clean_up_tokenization_spaces=True, model_max_length=7, errors="strict"),
    "offsets": all_of(GENERIC, byte_level(trim_offsets=True)),
    "nested steps": all_of(GENERIC, fast(lambda content: content.update(normalizer=NESTED_NFC))),
    "settings for unknown characters": all_of(GENERIC, model(byte_fallback=True, fuse_unk=True, unk_token="a")),
    "no dropout": all_of(GENERIC, model(dropout=0.0)),
    "chat template": settings(chat_template="{{ messages[0].content }}"),
    "another pad token": settings(pad_token="<|vision_pad|>"),
    "a known token as additional": settings(additional_special_tokens=["<|im_start|>"]),
    "all tokens special": added_tokens(lambda token: token.update(special=True)),
    "no token special": added_tokens(lambda token: token.update(special=False)),
    "added tokens in the vocabulary": listed_as_well("tokenizer.json"),
    "added tokens in the vocabulary, generic class": listed_as_well("tokenizer.json", generic=True),
    "added tokens in the vocabulary, no fast file": listed_as_well("vocab.json"),
    "NFC twice": all_of(GENERIC, fast(lambda content: content.update(normalizer=TWICE_NFC))),
    "a post-processor that inserts nothing": fast(lambda content: content.update(post_processor=None)),
    "a normaliser that Qwen2Tokenizer ignores": fast(lambda content: content.update(normalizer=None)),
}

OTHER: dict[str, Edit] = {
    "additional token": settings(additional_special_tokens=["a star"]),
    "extra token": settings(extra_special_tokens=["a star"]),
    "named token": settings(extra_special_tokens={"star_token": "a star"}),
    "token of the map": all_of(
        config(lambda content: content.pop("added_tokens_decoder")),
        change("special_tokens_map.json", lambda content: content.update(additional_special_tokens=["a star"])),
    ),
    "token of added_tokens.json": all_of(
        older_layout, change("added_tokens.json", lambda content: content.update({"a star": 720 + len(content)}))
    ),
    "bos token": settings(bos_token="a star"),
    "split": settings(split_special_tokens=True),
    "split, all tokens special": all_of(
        settings(split_special_tokens=True), added_tokens(lambda token: token.update(special=True))
    ),
    "lstrip": added_tokens(lambda token: token.update(lstrip=True)),
    "rstrip": added_tokens(lambda token: token.update(rstrip=True)),
    "single words": added_tokens(lambda token: token.update(single_word=True)),
    "normalized": added_tokens(lambda token: token.update(normalized=True)),
    "prefix space": settings(add_prefix_space=True),
    "fewer merges": fast(lambda content: content["model"]["merges"].pop(0)),
    "fewer merges in slow files": all_of(
        without("tokenizer.json"), text("merges.txt", lambda content: "\n".join(content.split("\n")[:40]))
    ),
    "swapped ids": fast(swap),
    "no normaliser": all_of(GENERIC, fast(lambda content: content.update(normalizer=None))),
    "lower case": all_of(GENERIC, fast(lambda content: content.update(normalizer={"type": "Lowercase"}))),
    "another pre-tokeniser": all_of(GENERIC, fast(lambda content: content.update(pre_tokenizer=EACH_CHARACTER))),
    "prefix space of the file": all_of(GENERIC, byte_level(add_prefix_space=True)),
    "NFC around lower case": all_of(GENERIC, fast(lambda content: content.update(normalizer=NFC_LOWER_NFC))),
    "plain token": plain_token("qz"),
    "plain token in the vocabulary": plain_token("qz", listed=True),
    "single word": plain_token("qz", single_word=True),
    "single word in the vocabulary": plain_token("qz", single_word=True, listed=True),
    "single word with a merge": plain_token("qz", single_word=True, merged=True),
    "special token in the vocabulary": plain_token("qz", special=True, listed=True),
    "inserted tokens": fast(lambda content: content.update(post_processor=MARKED)),
}

REFUSED: dict[str, tuple[Edit, str]] = {
    "code": (settings(auto_map={"AutoTokenizer": ["tokenization.Own", None]}), "names code of the checkpoint"),
    "another class": (settings(tokenizer_class="LlamaTokenizer"), "says tokenizer_class 'LlamaTokenizer'"),
    "a class that is no name": (settings(tokenizer_class=["Qwen2Tokenizer"]), "says tokenizer_class"),
    "another model": (model(type="Unigram"), "says model type 'Unigram', expected 'BPE'"),
    "random merges": (all_of(GENERIC, model(dropout=0.5)), "says dropout 0.5"),
    "unknown parts": (fast(lambda c: c["model"]["merges"].append(["no", "thing"])), "the tokenizer cannot be read"),
    "a lost token": (config(lambda c: c["added_tokens_decoder"].pop("725")), "is token 726, but it loads as 725"),
    "no files": (without("tokenizer.json", "vocab.json"), "tokenizer.json is missing"),
    "a generic class without its file": (all_of(GENERIC, without("tokenizer.json")), "tokenizer.json is missing"),
    "no config": (without("tokenizer_config.json"), "tokenizer_config.json is missing"),
    "a damaged map": (
        all_of(change("special_tokens_map.json", dict), text("special_tokens_map.json", lambda content: content[:-1])),
        "special_tokens_map.json is not JSON",
    ),
    "UTF-16": (text("merges.txt", str, "utf-16"), "merges.txt is UTF-16 or UTF-32 text"),
    "Latin-1": (text("merges.txt", lambda _: "\xe9", "latin-1"), "merges.txt is not UTF-8 text"),
}


def canaries(folder: Path) -> list[list[int]]:
    """Returns the token ids of texts in which each edit of these tests shows, and the padding id."""
    tokenizer = load(folder)
    special = [token["content"] for token in json.loads((DEMO / "tokenizer.json").read_text())["added_tokens"]]
    forms = ("{}", "x {} y", "x{}y", "{}\u0338", "{}\u0301", "\n{}\t")
    texts = [form.format(token) for token in [*special, "a star"] for form in forms]
    texts += [chr(code) for code in range(256)]
    texts += ["a small red circle", " leading", "trailing  ", "A Red CIRCLE", "it's we'LL", "!!\n\n\n##"]
    texts += ["\u00e9 e\u0301 \u212b", "\u00a0\u3000", "12345 \u0663\u0664", "\u4e00\u53ea\u732b"]
    texts += ["qz", "a qz b", "xqzx", "QZ"]
    texts += ["\U0001f3a8\U0001f469\u200d\U0001f680", "many red and blue shapes, " * 200]
    ids: list[list[int]] = tokenizer(texts, padding=False, truncation=False).input_ids
    return [*ids, [padding_id(tokenizer)]]


@pytest.fixture(autouse=True)
def silent() -> None:
    logging.getLogger("transformers").setLevel(logging.ERROR)


def test_the_digests_of_the_demo_are_those_of_the_first_release() -> None:
    assert identity(DEMO) == TokenizerIdentity(DEMO_DIGEST, DEMO_TEMPLATE_DIGEST)


@pytest.mark.parametrize("name", SAME)
def test_the_same_tokenizer_in_another_spelling(folder: Path, name: str) -> None:
    SAME[name](folder)
    assert canaries(folder) == canaries(DEMO)
    assert digest(folder) == DEMO_DIGEST


@pytest.mark.parametrize("name", OTHER)
def test_another_tokenizer(folder: Path, name: str) -> None:
    OTHER[name](folder)
    assert canaries(folder) != canaries(DEMO)
    assert digest(folder) != DEMO_DIGEST


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused(folder: Path, name: str) -> None:
    edit, message = REFUSED[name]
    edit(folder)
    with pytest.raises(CheckpointError) as error:
        load(folder)
    assert message in error.value.message


EDITS = SAME | OTHER


@example(["split"], ["named token", "split"])
@example(["split"], ["split", "added tokens in the vocabulary"])
@example(["split", "generic class"], ["split", "added tokens in the vocabulary, generic class"])
@example(["single word"], ["single word in the vocabulary"])
@example(["single word"], ["single word with a merge"])
@example(["split", "generic class"], ["split", "special token in the vocabulary"])
@example(["plain token"], ["plain token in the vocabulary"])
@example(["lower case"], ["NFC around lower case"])
@example([], ["special token in the vocabulary", "class of version 4"])
@given(st.lists(st.sampled_from(sorted(EDITS)), max_size=4), st.lists(st.sampled_from(sorted(EDITS)), max_size=4))
def test_digests_are_equal_where_token_ids_are(
    tmp_path_factory: pytest.TempPathFactory, first: list[str], second: list[str]
) -> None:
    found = []
    for names in (first, second):
        folder = Path(shutil.copytree(DEMO, tmp_path_factory.mktemp("edited") / "tokenizer"))
        try:
            for name in names:
                with suppress(KeyError, FileNotFoundError):  # an edit of what an earlier one has removed
                    EDITS[name](folder)
            found.append((canaries(folder), digest(folder)))
        except CheckpointError:  # refused by name
            return
        finally:
            shutil.rmtree(folder.parent)
    (ids, one), (other_ids, other) = found
    assert (ids == other_ids) == (one == other)


@pytest.mark.parametrize("value", [False, True, None])
def test_a_key_that_transformers_cannot_read_is_named(folder: Path, value: object) -> None:
    settings(add_special_tokens=value)(folder)
    with pytest.raises(
        CheckpointError, match=r"tokenizer_config\.json has add_special_tokens, which is no setting"
    ) as e:
        load(folder)
    assert "remove it" in e.value.message


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("{% if strftime_now is defined %}{{ strftime_now('%d') }}{% endif %}{{ messages }}", "strftime_now"),
        ("{{ ['a', 'b'] | random }}", "random"),
        ("{{ ['a', 'b']|random }}", "random"),
        ("{% filter random %}ab{% endfilter %}", "random"),
        ("{{ [['a', 'b']] | map('random') | first }}", "random"),
        ("{{ lipsum() }}", "lipsum"),
    ],
)
def test_a_template_that_changes_by_itself_is_refused(folder: Path, text: str, named: str) -> None:
    with pytest.raises(CheckpointError, match=rf"tokenizer: the chat template uses {named}, so a prompt would"):
        load_tokenizer(folder, text)


@pytest.mark.parametrize(
    "text", ["random | strftime_now", "{# | random #}", "{{ 'strftime_now' }}", "{% set random = 1 %}", "{% for"]
)
def test_other_templates_are_not_refused_for_it(folder: Path, text: str) -> None:
    assert load_tokenizer(folder, text).chat_template == text


def test_a_token_without_a_row_of_the_embedding_is_named(folder: Path) -> None:
    check_rows(folder, load(folder), 746)
    settings(additional_special_tokens=[f"<extra_{at}>" for at in range(40)])(folder)
    check_rows(folder, load(folder), 786)
    with pytest.raises(CheckpointError, match=r"token '<extra_22>' has id 768 \(and 17 more\), .* has 768 rows"):
        check_rows(folder, load(folder), 768)


@pytest.mark.parametrize(
    ("settings_of_both", "flags"),
    [(EDITS["split"], {"special": True}), (EDITS["lower case"], {}), (all_of(), {"single_word": True})],
    ids=["split special tokens", "a normaliser that runs after the search for added tokens", "single words"],
)
def test_an_added_token_in_the_vocabulary_counts_where_a_merge_leads_to_it(
    folder: Path, settings_of_both: Edit, flags: dict[str, bool]
) -> None:
    """Its text then reaches the model where the search for added tokens has not found it."""
    found: list[tuple[list[list[int]], str]] = []
    for edit in ({"merged": True}, {"listed": True}, {}):
        copy = Path(shutil.copytree(folder, folder.with_name(f"copy-{len(found)}")))
        all_of(plain_token("qz", **edit, **flags), settings_of_both)(copy)
        found.append((canaries(copy), digest(copy)))
    (merged, merged_digest), (listed, listed_digest), (plain, plain_digest) = found
    assert listed == plain != merged
    assert listed_digest == plain_digest != merged_digest


def test_a_template_counts_with_the_special_tokens_that_it_names(folder: Path) -> None:
    tokenizer = load(folder)
    assert template_digest(tokenizer, "a\nb") == template_digest(tokenizer, "a\r\nb\n")
    assert template_digest(tokenizer, "a\nb") != template_digest(tokenizer, "a\nb\n\n")
    plain, named = "{{ messages }}", "{{ messages }}{{ eos_token }}"
    settings(eos_token="<|im_start|>")(folder)
    other = load(folder)
    assert template_digest(tokenizer, plain) == template_digest(other, plain)
    assert template_digest(tokenizer, named) != template_digest(other, named)


def test_every_file_may_begin_with_a_byte_order_mark(folder: Path) -> None:
    older_layout(folder)
    (folder / "config.json").write_text('{"model_type": "qwen3"}')
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates/rag.jinja").write_text("x")
    plain = identity(folder)
    for path in folder.rglob("*"):
        if path.is_file():
            path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert identity(folder) == plain
    (folder / "tokenizer.json").unlink()
    assert digest(folder)
