"""Vision-language models: the closed form against autograd, and rows with images of every kind."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from helpers import tiny_vision
from helpers.tiny_vision import FAMILIES, index_of, picture, png
from PIL import Image

from forvalue_index.analysis.evaluate.metrics import auc
from forvalue_index.analysis.evaluate.mislabel import _split, corrupt
from forvalue_index.cli import main
from forvalue_index.config import FormatConfig, TrainConfig, VectorConfig
from forvalue_index.data.formatter import Formatter
from forvalue_index.data.images import settle
from forvalue_index.data.sources import open_rows
from forvalue_index.errors import InputError, KeyConflictError, RowError
from forvalue_index.index import InfluenceIndex
from forvalue_index.model.encoder import Encoder
from forvalue_index.model.fit import fit_vectoriser
from forvalue_index.model.language_model import LanguageModel, wrap_model
from forvalue_index.model.runner import Runner
from forvalue_index.model.training import fine_tune, token_losses
from forvalue_index.picture import Picture
from forvalue_index.records import Row, Sample
from forvalue_index.vectors.recipe import Raw

FORMAT = FormatConfig(image_field="images", max_length=400, eos=False)
SIZES = [(40, 30), (30, 60), (24, 24)]


@pytest.fixture(scope="module", params=FAMILIES)
def lm(request: pytest.FixtureRequest) -> LanguageModel:
    model, processor = tiny_vision.load(request.param)
    return wrap_model(model, processor.tokenizer, processor=processor)


def embedded(*seeds: int) -> list[dict[str, str]]:
    return [{"bytes": base64.b64encode(png(seed, SIZES[seed % 3])).decode()} for seed in seeds]


def rows() -> list[Row]:
    """None, one and two images, of several sizes; some prompts say where."""
    return [
        {"prompt": "what is it?", "response": " a cat", "images": embedded(0)},
        {"prompt": "no picture", "response": " at all, none", "images": None},
        {"prompt": "compare <image>with <image>now", "response": " same", "images": embedded(1, 2)},
        {"prompt": "what?", "response": " a dog that barks", "images": embedded(3)},
        {"prompt": "", "response": " short", "images": []},
        {"prompt": "what is it?", "response": " a cat", "images": embedded(4)},
    ]


def samples_of(lm: LanguageModel, rows: list[Row], format: FormatConfig = FORMAT) -> list[Sample]:
    assert format.max_length is not None
    formatter = Formatter(lm.tokenizer, format, format.max_length, vision=lm.vision)
    return formatter.samples(
        [(f"row {i}", settle(row, f"row {i}", format)) for i, row in enumerate(rows)]
    )


def oracle_inputs(lm: LanguageModel, sample: Sample) -> dict[str, torch.Tensor]:
    """What the processor itself makes of a sample, with the response behind it."""
    assert lm.vision is not None
    prompt = sample.row["prompt"]
    if lm.vision.placeholder != "<image>":
        prompt = prompt.replace("<image>", lm.vision.insertion)
    if sample.images and lm.vision.placeholder not in prompt:
        prompt = lm.vision.insertion + prompt
    images = [image.pixels("oracle") for image in sample.images]
    values = lm.vision.processor(
        images=images or None, text=[prompt], return_tensors="pt", add_special_tokens=False
    )
    response = lm.tokenizer(sample.row["response"], add_special_tokens=False)["input_ids"]
    inputs = {name: value for name, value in values.items() if name != "attention_mask"}
    ids = values["input_ids"].long()
    inputs["input_ids"] = torch.cat([ids, torch.tensor([response])], 1)
    for name in ("token_type_ids", "mm_token_type_ids"):
        if name in inputs:
            inputs[name] = torch.cat([inputs[name], torch.zeros(1, len(response)).long()], 1)
    return inputs


def gradients(lm: LanguageModel, samples: list[Sample]) -> torch.Tensor:
    """Gradient of each summed response log-likelihood by the head's own weight."""
    head, result = lm.model.get_output_embeddings(), []
    for sample in samples:
        inputs = oracle_inputs(lm, sample)
        weight = torch.nn.Parameter(head.weight.detach().clone())
        kept, head.weight = head.weight, weight
        likelihood = torch.log_softmax(lm.model(**inputs).logits[0], -1)
        ids = inputs["input_ids"][0]
        first = len(ids) - len(lm.tokenizer(sample.row["response"])["input_ids"])
        places = torch.arange(max(first, 1), len(ids))
        total = likelihood[places - 1, ids[places]].sum()
        result.append(torch.autograd.grad(total, weight)[0].flatten())
        head.weight = kept
    return torch.stack(result)


def test_the_closed_form_is_the_product_of_gradients(lm: LanguageModel) -> None:
    samples = samples_of(lm, rows())
    for sample in samples:
        ids = oracle_inputs(lm, sample)["input_ids"][0].numpy()
        np.testing.assert_array_equal(sample.input_ids, ids)  # as the processor writes them
    found = torch.from_numpy(Encoder(lm).influence(samples, samples, [Raw()])).double()
    truth = gradients(lm, samples).double()
    truth = truth @ truth.T
    scale = torch.sqrt(truth.diagonal()[:, None] * truth.diagonal()[None])
    assert ((found - truth).abs() / scale).max() < 1e-4
    assert (truth.abs() / scale).min() < 0.9


def test_a_vector_depends_on_its_sample_alone(lm: LanguageModel) -> None:
    samples = samples_of(lm, rows())
    settings = VectorConfig(dim=32, sketch_dim=512)
    vectoriser = fit_vectoriser(lm, samples, settings, lambda done: None).vectoriser

    def vectors(order: list[int], budget: int) -> np.ndarray:
        result = np.zeros((len(samples), vectoriser.dim))
        chosen = [samples[i] for i in order]
        for batch in Encoder(lm, budget).encode(chosen, vectoriser):
            for position, item in batch:
                result[order[position]] = item.vector
        return result / np.linalg.norm(result, axis=1, keepdims=True)

    alone = vectors([0, 1, 2, 3, 4, 5], 1)
    np.testing.assert_allclose(alone, vectors([0, 1, 2, 3, 4, 5], 4096), atol=1e-4)
    np.testing.assert_allclose(alone, vectors([5, 2, 4, 0, 3, 1], 4096), atol=1e-4)
    # Rows 0 and 5 have the same text: what tells them apart is the picture.
    assert abs(alone[0] @ alone[5]) < 0.999
    assert samples[0].content_hash != samples[5].content_hash


def test_a_model_that_sees_is_fine_tuned(lm: LanguageModel) -> None:
    samples = samples_of(lm, rows())
    before = [token_losses(lm, lm.collate(samples, [i])).mean() for i in range(len(samples))]
    tuned = fine_tune(lm, samples, TrainConfig(epochs=8, learning_rate=1e-3, batch_size=4))
    after = [token_losses(tuned, tuned.collate(samples, [i])).mean() for i in range(len(samples))]
    assert torch.stack(after).mean() < torch.stack(before).mean()
    again = [token_losses(lm, lm.collate(samples, [i])).mean() for i in range(len(samples))]
    assert torch.equal(torch.stack(again), torch.stack(before))  # the model itself is as it was


def test_samples_with_and_without_images_share_no_batch_but_alike_ones_do() -> None:
    model, processor = tiny_vision.load("llava")
    lm = wrap_model(model, processor.tokenizer, processor=processor)
    groups = Runner(lm)._batches(samples_of(lm, rows()), 4096)
    assert sorted(map(sorted, groups)) == [[0, 2, 3, 5], [1, 4]]


@pytest.mark.parametrize("score", ["response", "all"])
def test_tokens_of_images_are_never_scored(lm: LanguageModel, score: str) -> None:
    assert lm.vision is not None
    first, *_ = samples_of(lm, rows(), FormatConfig(image_field="images", max_length=400))
    taken = lm.vision.special_ids(first.images[0].size)
    for format in (
        FormatConfig(image_field="images", score=score, max_length=400),
        FormatConfig(image_field="images", text_field="response", max_length=400),
    ):
        for sample in samples_of(lm, rows(), format):
            assert sample.scored.any()
            assert not set(sample.input_ids[sample.scored].tolist()) & taken
            assert len(sample.images) == len(sample.row["images"] or ())


def test_messages_with_images_are_what_the_chat_template_writes(lm: LanguageModel) -> None:
    format = FormatConfig(messages_field="messages", max_length=400)
    (image,) = embedded(1)
    parts = [{"type": "image", "image": image}, {"type": "text", "text": "what?"}]
    messages = [
        {"role": "user", "content": parts},
        {"role": "assistant", "content": " a cat"},
        {"role": "user", "content": "sure?"},
        {"role": "assistant", "content": " yes"},
    ]
    assert lm.vision is not None
    (sample,) = samples_of(lm, [{"messages": messages}], format)
    listed = [
        {"role": m["role"], "content": [{"type": "text", "text": m["content"]}]}
        for m in messages[1:]
    ]
    whole = lm.vision.processor.apply_chat_template(
        [{"role": "user", "content": [{"type": "image"}, parts[1]]}, *listed], tokenize=False
    )
    pixels = sample.images[0].pixels("oracle")
    expected = lm.vision.processor(images=[pixels], text=[whole], add_special_tokens=False)
    assert sample.input_ids.tolist() == list(expected["input_ids"][0])
    said = lm.tokenizer.decode(sample.input_ids[sample.scored].tolist())
    assert said.replace(" ", "") == "acat</s>yes</s>"


def test_the_same_picture_counts_the_same_in_the_messages_and_in_a_field() -> None:
    model, processor = tiny_vision.load("llava")
    lm = wrap_model(model, processor.tokenizer, processor=processor)
    (image,) = embedded(1)
    answer = {"role": "assistant", "content": " a cat"}
    text = {"type": "text", "text": "what?"}

    def ids(content: Any, **fields: Any) -> tuple[list[int], int]:
        row = {"messages": [{"role": "user", "content": content}, answer], **fields}
        format = FormatConfig(messages_field="messages", image_field="image", max_length=400)
        (sample,) = samples_of(lm, [row], format)
        return sample.input_ids.tolist(), len(sample.images)

    url = f"data:image/png;base64,{image['bytes']}"
    wanted = ids([{"type": "image", "image": image}, text])
    assert wanted[1] == 1
    assert ids([{"type": "image_url", "image_url": {"url": url}}, text]) == wanted
    assert ids([{"type": "image"}, text], image=image) == wanted
    assert ids("what?", image=[image]) == wanted
    assert ids("<image>\nwhat?", image=url) == wanted
    with pytest.raises(RowError, match="some images are in the messages and some are not"):
        ids([{"type": "image", "image": image}, {"type": "image"}], image=image)
    with pytest.raises(RowError, match="2 times, but the row has 1 images"):
        ids([{"type": "image"}, {"type": "image"}], image=image)


def test_a_long_row_loses_the_end_of_its_response_and_never_an_image(lm: LanguageModel) -> None:
    row = {"prompt": "what?", "response": " a dog that barks", "images": embedded(0)}
    (whole,) = samples_of(lm, [row])
    response = int(whole.scored.sum())
    room = len(whole.input_ids) - response
    for side in ("unscored", "start", "end"):
        format = FormatConfig(image_field="images", truncate=side, max_length=room + 3)
        (sample,) = samples_of(lm, [row], format)
        assert sample.truncated
        np.testing.assert_array_equal(sample.input_ids, whole.input_ids[: room + 3])
        assert sample.scored.sum() == 3
    for short in (room, 4):
        format = FormatConfig(image_field="images", max_length=short)
        with pytest.raises(RowError, match="which are never cut, are too many"):
            samples_of(lm, [row], format)


def test_pictures_are_found_wherever_a_row_has_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "data" / "images").mkdir(parents=True)
    (tmp_path / "here").mkdir()
    data = png(0)
    for place in (tmp_path / "data" / "images" / "a.png", tmp_path / "here" / "b.png"):
        place.write_bytes(data)
    monkeypatch.chdir(tmp_path / "here")
    source = f"{tmp_path}/data/train.jsonl:7"
    code = base64.b64encode(data).decode()
    format = FormatConfig(image_field="image")

    def stored(value: Any) -> Any:
        return settle({"image": value}, source, format)["image"]

    in_file = stored("images/a.png")
    assert in_file["path"] == str(tmp_path / "data" / "images" / "a.png")
    assert in_file["size"] == [40, 30]
    assert "bytes" not in in_file
    assert stored("b.png")["path"] == str(tmp_path / "here" / "b.png")
    assert stored({"bytes": None, "path": "images/a.png"}) == in_file
    for value in (data, code, {"bytes": code}, f"data:image/png;base64,{code}"):
        assert stored(value) == {k: v for k, v in in_file.items() if k != "path"} | {"bytes": code}
    assert stored(picture(0))["size"] == [40, 30]
    assert stored([code, "b.png"])[1]["path"].endswith("b.png")
    assert stored(None) is None
    assert stored(in_file) == in_file  # a row that was exported can be built from again


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("gone.png", "image gone.png is not in the data file's folder, nor in the working"),
        ("https://example.org/a.png", "is a URL: pass --allow-remote"),
        (b"no picture", "image of the row cannot be decoded"),
        (png(0)[:-40], "image of the row cannot be decoded"),
        ({"bytes": "???"}, 'the "bytes" of an image are text, but not base64'),
        ("data:image/png,abc", "the data: URI of an image holds no base64"),
        ({"size": 3}, 'neither "bytes" nor "path"'),
        (3, "an image must be a path, bytes or base64, not int"),
    ],
)
def test_what_is_no_picture_is_an_error_of_its_row(value: Any, message: str) -> None:
    with pytest.raises(RowError, match=message) as error:
        settle({"image": value}, "train.jsonl:3", FormatConfig(image_field="image"))
    assert error.value.source == "train.jsonl:3"


def test_a_picture_is_read_upright_and_in_rgb(tmp_path: Path) -> None:
    lying = Image.new("P", (20, 10))
    lying.putpalette([10, 20, 30] * 256)
    exif = Image.Exif()
    exif[0x0112] = 6
    lying.save(tmp_path / "a.png", exif=exif, transparency=bytes(256))
    format = FormatConfig(image_field="image")
    row = settle({"image": str(tmp_path / "a.png")}, "row 1", format)
    assert row["image"]["size"] == [10, 20]
    pixels = Picture.from_json(row["image"]).pixels("row 1")
    assert (pixels.mode, pixels.size) == ("RGB", (10, 20))
    assert pixels.getpixel((0, 0)) == (10, 20, 30)


def test_json_of_a_row_with_a_picture_is_json() -> None:
    row = settle({"image": png(0)}, "row 1", FormatConfig(image_field="image"))
    assert json.loads(json.dumps(row)) == row


@pytest.fixture(scope="module")
def llava_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_vision.save(tmp_path_factory.mktemp("models") / "llava", "llava")


@pytest.fixture()
def data(tmp_path: Path) -> Path:
    """Eight rows in a file beside their pictures; the last one has none."""
    (tmp_path / "images").mkdir()
    for seed in range(8):
        (tmp_path / "images" / f"{seed}.png").write_bytes(png(seed))
    listed: list[Row] = [
        {"id": f"r{i}", "prompt": "what?", "response": f" it is {i}", "image": f"images/{i}.png"}
        for i in range(7)
    ]
    listed.append({"id": "r7", "prompt": "what?", "response": " none", "image": None})
    path = tmp_path / "train.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in listed))
    return path


def test_an_index_of_images_is_built_asked_extended_and_verified(
    tmp_path: Path, data: Path, llava_dir: Path
) -> None:
    query = {"prompt": "what?", "response": " it is 3", "image": str(tmp_path / "images/3.png")}
    with index_of(tmp_path / "ix", data, llava_dir) as index:
        hits = index.query(query, k=3, metric="cosine")
        assert hits[0].key == "r3"
        assert hits[0].sample["image"]["path"] == str(tmp_path / "images" / "3.png")
        assert hits[0].sample["image"]["size"] == [40, 30]
        exact = index.query(query, k=3, metric="cosine", exact=True)
        assert exact[0].key == "r3"
        assert exact[0].score == pytest.approx(1, abs=1e-4)
        other = query | {"image": str(tmp_path / "images/5.png")}
        vectors = index.vectors(index.samples([query, other]))
        assert np.abs(vectors[0] - vectors[1]).max() > 0
        new = {"id": "new", "prompt": "what?", "response": " it is 3", "image": png(3)}
        assert index.add([new]).added == 1
        assert index.add([new, new | {"id": "newer", "image": png(99)}]).added == 1
        tied = index.query(query, k=2, metric="cosine")
        assert {hit.key for hit in tied} == {"r3", "new"}
        assert index.get("new").row["image"]["bytes"]
        assert index.remove(["r3"]) == 1
        assert index.query(query, k=1, metric="cosine")[0].key == "new"
        assert index.verify() == []
    with InfluenceIndex.open(tmp_path / "ix") as index:
        assert index.query(query, k=1, metric="cosine", exact=True)[0].key == "new"
        assert index.add(data).added == 1  # the one that was removed


def test_the_bytes_of_a_picture_are_its_content_wherever_it_is(
    tmp_path: Path, data: Path, llava_dir: Path
) -> None:
    with index_of(tmp_path / "ix", data, llava_dir) as index:
        moved = tmp_path / "moved"
        moved.mkdir()
        (tmp_path / "images").rename(moved / "images")
        data.rename(moved / "train.jsonl")
        assert index.add(moved / "train.jsonl").added == 0
        query = {"prompt": "what?", "response": " it is 3"}
        with pytest.raises(RowError, match=r"sample 'r\d'.*0.png cannot be read \(No such file"):
            index.query(query, k=8, exact=True)
        (moved / "images" / "0.png").write_bytes(png(77))
        with pytest.raises(KeyConflictError, match="'r0' is already in the index, with other"):
            index.add(moved / "train.jsonl")
        (moved / "images").rename(tmp_path / "images")
        with pytest.raises(RowError, match=r"0\.png has changed since its row was first"):
            index.query(query, k=8, exact=True)
        assert len(index.query(query, k=8)) == 8  # stored vectors need no pictures


def test_rows_whose_images_cannot_be_used_are_rejected_and_the_build_goes_on(
    tmp_path: Path, data: Path, llava_dir: Path
) -> None:
    (tmp_path / "images" / "2.png").write_bytes(png(2)[:-30])
    (tmp_path / "images" / "4.png").unlink()
    with pytest.raises(RowError, match=r"train.jsonl:3: image .*2.png cannot be decoded"):
        index_of(tmp_path / "ix", data, llava_dir)
    with index_of(tmp_path / "ix", data, llava_dir, on_error="skip") as index:
        assert len(index) == 6
    notes = [
        json.loads(line) for line in (tmp_path / "ix" / "rejects.jsonl").read_text().splitlines()
    ]
    assert [note["line"] for note in notes] == [3, 5]
    assert "cannot be decoded" in notes[0]["reason"]


def test_a_model_of_texts_refuses_rows_with_images(
    tmp_path: Path, data: Path, model_dir: Path
) -> None:
    with pytest.raises(InputError, match=r'reads text only: .* --image-field ""'):
        index_of(tmp_path / "ix", data, model_dir)


def test_urls_are_fetched_only_when_that_is_allowed_and_kept(
    tmp_path: Path, llava_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def answer(url: str) -> io.BytesIO:
        asked.append(url)
        return io.BytesIO(png(1))

    monkeypatch.setattr("forvalue_index.data.remote.open_url", answer)
    row = {"prompt": "what?", "response": " a cat", "image": "https://example.org/a.png"}
    format = FormatConfig(image_field="image")
    with pytest.raises(RowError, match=r"row 1: image https://example\.org/a\.png is a URL"):
        InfluenceIndex.build(tmp_path / "ix", [row], str(llava_dir), format=format)
    assert not asked
    rows = open_rows([row], allow_remote=True)
    index, _ = InfluenceIndex.build(tmp_path / "ix", rows, str(llava_dir), format=format)
    with index:
        assert asked == ["https://example.org/a.png"]  # once, for all passes over the rows
        monkeypatch.setattr(
            "forvalue_index.data.remote.open_url", lambda _: pytest.fail("asked again")
        )
        query = {"prompt": "what?", "response": " a cat", "image": png(1)}
        (hit,) = index.query(query, k=1, exact=True)
        assert hit.sample["image"]["path"] == "https://example.org/a.png"
    # The commands fetch the images of what they ask about, too, if they are told to.
    monkeypatch.setattr("forvalue_index.data.remote.open_url", answer)
    file = tmp_path / "asked.jsonl"
    file.write_text(json.dumps(row) + "\n")
    for command in (["score"], ["query"], ["ask", "--max-new-tokens", "4"]):
        arguments = [*command, "--index", str(tmp_path / "ix"), "--data", str(file), "--json"]
        refused = CliRunner().invoke(main, arguments)
        assert refused.exit_code == 1 and "pass --allow-remote" in refused.stderr
        fetched = CliRunner().invoke(main, [*arguments, "--allow-remote"])
        assert fetched.exit_code == 0, fetched.output
        assert asked.pop() == "https://example.org/a.png"


def test_the_commands_read_images_and_show_them(
    tmp_path: Path, data: Path, llava_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    index, image = str(tmp_path / "ix"), str(tmp_path / "images" / "3.png")

    def run(*arguments: str) -> str:
        result = CliRunner().invoke(main, arguments, catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return result.output

    built = run("build", str(data), "--index", index, "--model", str(llava_dir), "--dim", "32")
    assert "images from 'image', as the field names suggest" in " ".join(built.split())
    asked = ("query", "--index", index, "--prompt", "what?", "--response", " it is 3")
    shown = run(*asked, "--image", image, "-k", "2", "--metric", "cosine")
    assert shown.count(f"[{image} 40x30] what? it is 3") == 2  # the query and its own row
    (hit,) = [
        json.loads(line)
        for line in run(*asked, "--image", image, "-k1", "--metric", "cosine", "--json").split(
            "\n"
        )[:-1]
    ]
    assert hit["sample"]["image"]["size"] == [40, 30]
    assert f"[{image} 40x30]" in run("show", hit["key"], "--index", index)
    without = run("build", str(data), "--index", f"{index}2", "--model", str(llava_dir),
                  "--image-field", "", "--dim", "32")  # fmt: skip
    assert "images from" not in without
    refused = CliRunner().invoke(main, [*asked[:3], "--data", str(data), "--image", image])
    assert "--image goes with --prompt or --text" in refused.output


SHARED = Path(__file__).parents[2] / "shared"


@pytest.mark.skipif(not SHARED.is_dir(), reason="no model and data of images beside the repository")
def test_a_real_model_finds_the_class_of_a_picture(tmp_path: Path) -> None:
    folder = SHARED / "data" / "fashion"
    lines = [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]
    listed: list[Row] = [
        {
            "prompt": "<s><image>",
            "response": line["caption"],
            "image": str(folder / line["file_name"]),
            "class": line["class"],
        }
        for line in lines
    ]
    train, test = listed[::8], listed[1::45]
    model = str(SHARED / "models" / "tiny-llava-emoji")
    format = FormatConfig(image_field="image")
    index, report = InfluenceIndex.build(tmp_path / "ix", train, model, format=format)
    with index:
        assert report.added == len(train)
        hits = index.query(test, k=5, metric="cosine")
        right = [hit.sample["class"] == test[hit.query]["class"] for hit in hits]
        assert np.mean(right) > 0.7
        assert index.add(listed[2::90]).added > 0
        assert index.remove(where=["class=bag"]) > 0
        best = index.query(test[:2], k=1, exact=True)
        assert [hit.exact for hit in best] == [True, True]
        assert index.verify() == []


@pytest.mark.parametrize("field", ["response", None])
def test_a_wrong_caption_does_not_give_itself_away_in_the_study(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, field: str | None
) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "tools"))
    import bench_images

    lines = [{"file_name": f"{i}.png", "caption": f"class {i % 10}"} for i in range(600)]
    (tmp_path / "metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    rng = np.random.default_rng(0)
    known, rest = _split(bench_images.rows_of(tmp_path, "<image>"), 0.1, field, rng)
    changed, wrong = corrupt(rest, "response", 0.2, field, rng)
    assert wrong.mean() > 0.15
    # Equal captions, and nothing of the pictures: chance, if the true class is not used.
    equal = np.array([[one["response"] == row["response"] for row in changed] for one in known])
    claimed = equal if field else np.ones_like(equal)
    values = (equal * claimed).sum(0) / np.maximum(claimed.sum(0), 1)
    assert auc(-values, wrong) == pytest.approx(0.5, abs=0.1)
