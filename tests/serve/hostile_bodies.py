"""Bodies that are as large as a deployment allows, and as costly as their kind can be. Each has a name, a path and what httpx sends."""

import base64
import io
import json
import struct
import zlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

JSON_HEADERS = {"content-type": "application/json"}
SEGMENT, CHAT, STUDIO = "/v1/segment", "/v1/chat/completions", "/adapters/label_studio/predict"


class Body(NamedTuple):
    """One request; `method` is POST unless it says otherwise."""

    name: str
    path: str
    request: dict[str, Any]


def photo() -> bytes:
    """A small PNG."""
    stream = io.BytesIO()
    Image.new("RGB", (40, 20), 100).save(stream, "PNG")
    return stream.getvalue()


def strip_png(width: int, height: int) -> bytes:
    """A grey PNG of any size in a few kilobytes."""
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = zlib.compressobj(9)
    data = b"".join(rows.compress(bytes(width + 1)) for _ in range(height)) + rows.flush()
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def progressive_jpeg(num_bytes: int) -> bytes:
    """A progressive JPEG whose last scan is repeated until the file is as large as it may be."""
    stream = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 255, (512, 512, 3), dtype=np.uint8)
    Image.fromarray(noise).save(stream, "JPEG", progressive=True, quality=5)
    data = stream.getvalue()
    start = data.rfind(b"\xff\xda")
    scan = data[start:-2]
    return data[:-2] + scan * ((num_bytes - len(data)) // len(scan)) + b"\xff\xd9"


def build_bodies(num_bytes: int) -> Iterator[Body]:
    """All kinds, each of about `num_bytes`."""
    encoded = base64.b64encode(photo()).decode()

    def fill(head: str, item: str, tail: str) -> bytes:
        room = num_bytes - len(head) - len(tail)
        return (head + item * (room // len(item)) + tail).encode()

    def as_json(name: str, path: str, content: bytes) -> Body:
        return Body(name, path, {"content": content, "headers": JSON_HEADERS})

    image = f'"image":"{encoded}"'
    for name, value in {
        "numbers in place of questions": ("[", "1,", "1]"), "questions": ("[", '"where?",', '"a"]'), "nulls": ("[", "null,", "null]"),
        "objects": ("[", "{},", "{}]"), "lists in lists": ("", "[", ""), "objects in objects": ("", '{"a":', ""),
        "one long number": ("", "9", ""), "one long fraction": ("0.", "3", ""), "floats": ("[", "1e308,", "1]"),
        "unicode escapes": ('"', "\\u0041", '"'), "surrogates": ('"', "\\ud83d\\ude00", '"'), "white space": ('"a"', " ", ""),
    }.items():
        head, item, tail = value
        yield as_json(f"segment, {name}", SEGMENT, fill(f'{{{image},"question":{head}', item, f"{tail}}}"))
    yield as_json("segment, unknown fields", SEGMENT, b"{" + b",".join(b'"%d":0' % number for number in range(num_bytes // 11)) + b"}")
    yield as_json("segment, one field again and again", SEGMENT, fill("{", '"question":"a",', f"{image}}}"))
    yield as_json("segment, base64 of nothing", SEGMENT, fill('{"question":"a","image":"', "AAAA", '"}'))
    yield as_json("segment, base64 with line breaks", SEGMENT, fill('{"question":"a","image":"', "A\\n", '"}'))
    yield as_json("segment, data URL", SEGMENT, fill('{"question":"a","image":"data:image/png;', "a=b;", 'base64,AAAA"}'))
    yield as_json("segment, not JSON", SEGMENT, b"\x00" * num_bytes)
    boundary = {"content-type": "multipart/form-data; boundary=x"}
    for name, part in {"form fields": b'--x\r\ncontent-disposition: form-data; name="question"\r\n\r\na\r\n',
                       "form files": b'--x\r\ncontent-disposition: form-data; name="image"; filename="a"\r\n\r\na\r\n',
                       "form headers": b'--x\r\ncontent-disposition: form-data; name="a"\r\n' + b"a: b\r\n" * 500 + b"\r\na\r\n"}.items():
        yield Body(f"segment, {name}", SEGMENT, {"content": part * (num_bytes // len(part)) + b"--x--\r\n", "headers": boundary})
    field = b'--x\r\ncontent-disposition: form-data; name="question"\r\n\r\n'
    yield Body("segment, one form field", SEGMENT, {"content": field + b"a" * num_bytes + b"\r\n--x--\r\n", "headers": boundary})
    for name, data in {"progressive scans": progressive_jpeg(num_bytes), "a strip of 1 x 39,000,000": strip_png(1, 39_000_000),
                       "a strip of 39,000,000 x 1": strip_png(39_000_000, 1), "40 megapixels": strip_png(8000, 5000),
                       "noise": np.random.default_rng(0).bytes(num_bytes),
                       "a JPEG of markers": b"\xff\xd8" + b"\xff\xd0" * (num_bytes // 2),
                       "a JPEG of segments": b"\xff\xd8" + b"\xff\xe1\x00\x02" * (num_bytes // 4)}.items():
        yield Body(f"photo, {name}", SEGMENT, {"content": data, "headers": {"content-type": "image/png"}, "params": {"question": "none"}})
    user = {"role": "user", "content": [{"type": "text", "text": "a"},
                                        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{encoded}"}}]}
    head = f'{{"model":"test","messages":[{json.dumps(user)},'
    end = f'{{"role":"assistant","content":"a"}},{json.dumps(user)}]}}'
    yield as_json("chat, messages", CHAT, fill(head, '{"role":"user","content":"a"},', end))
    yield as_json("chat, wrong messages", CHAT, fill('{"model":"test","messages":[', "{},", "{}]}"))
    yield as_json("chat, parts", CHAT, fill('{"model":"test","messages":[{"role":"user","content":[', '{"type":"text","text":"a"},',
                                            '{"type":"text","text":"a"}]}]}'))
    span = '{"span":[0,1]},'
    yield as_json("chat, spans", CHAT, fill(head + '{"role":"assistant","content":"' + "a" * (num_bytes // 2) + '","masks":[', span,
                                            f'{{"span":[0,1]}}]}},{json.dumps(user)}]}}'))
    yield as_json("chat, a long answer of earlier", CHAT, fill(
        head + '{"role":"assistant","content":"', "a ", f'"}},{json.dumps(user)}]}}'))
    yield as_json("chat, stops", CHAT, fill(f'{{"model":"test","messages":[{json.dumps(user)}],"stop":[', '"a",', '"b"]}'))
    yield as_json("chat, other fields", CHAT, fill(f'{{"model":"test","messages":[{json.dumps(user)}],"metadata":[', "[],", "[]]}"))
    project = '<View><Image name="i" value="$image"/><BrushLabels name="b" toName="i"><Label value="half"/></BrushLabels></View>'
    task = f'{{"data":{{"image":"{encoded}","question":"none"}}}}'
    config = json.dumps(project)
    for name, xml in {"tags": '<BrushLabels name=\\"a\\" toName=\\"b\\"/><Image name=\\"c\\"/>', "depth": "<a>",
                      "labels": '<Label value=\\"a\\"/>', "attributes": 'a=\\"b\\" '}.items():
        yield as_json(f"label studio, {name}", STUDIO, fill(f'{{"tasks":[{task}],"label_config":"<View ', xml, '/>"}'))
    yield as_json("label studio, tasks", STUDIO, fill('{"tasks":[', f"{task},", f'{task}],"label_config":{config}}}'))
    yield as_json("label studio, wrong tasks", STUDIO, fill('{"tasks":[', "{},", f'{{}}],"label_config":{config}}}'))
    yield as_json("label studio, context", STUDIO, fill(
        f'{{"tasks":[{task}],"label_config":{config},"params":{{"context":{{"result":[', "{},", "{}]}}}"))
    yield as_json("label studio, masks in a task", STUDIO, fill(
        f'{{"tasks":[{{"data":{{"image":"{encoded}","question":"none","rle":[', "255,", f'0]}}}}],"label_config":{config}}}'))
    yield Body("roboflow, base64", "/adapters/roboflow", {"content": b"A" * num_bytes, "params": {"question": "a"},
                                                         "headers": {"content-type": "application/x-www-form-urlencoded"}})
    yield as_json("hugging face, parameters", "/adapters/huggingface?question=a", fill(f'{{"inputs":"{encoded}","parameters":{{"x":[', "0,",
                                                                                       "0]}}"))
    for path in ("/livez", "/", "/web/page.js"):
        yield Body(f"{path}, a body", path, {"content": b"a" * num_bytes, "headers": {"idempotency-key": "k"}})
