import assert from "node:assert/strict";
import { test } from "node:test";

import { EventParser, type ServerSentEvent } from "../src/sse.js";

function parse(...pieces: Uint8Array[]): ServerSentEvent[] {
  const parser = new EventParser();
  return pieces.flatMap((piece) => parser.push(piece));
}

const encode = (text: string) => new TextEncoder().encode(text);

test("an event stream means the same wherever it is cut", () => {
  const text = [
    "\uFEFF: a comment first\n",
    'id: 1\ndata: {"type":"log","data":"Zürich 🪺 \\u2028"}\n\n',
    "data:without a space\n\n",
    "data: first line\r\ndata: second line\r\n\r\n",
    "data: mac line ends\r\r",
    "event: ignored\nretry: 10\ndata\n\n",
    "id: 7\n\n",
    "data: cut off by the end",
  ].join("");
  const bytes = encode(text);
  const expected = [
    { id: "1", data: '{"type":"log","data":"Zürich 🪺 \\u2028"}' },
    { data: "without a space" },
    { data: "first line\nsecond line" },
    { data: "mac line ends" },
    { data: "" },
  ];
  assert.deepEqual(parse(bytes), expected);
  for (let cut = 0; cut <= bytes.length; cut++) {
    assert.deepEqual(parse(bytes.subarray(0, cut), bytes.subarray(cut)), expected, `cut at ${cut}`);
  }
  assert.deepEqual(parse(...Array.from(bytes, (byte) => Uint8Array.of(byte))), expected, "byte by byte");
});

test("U+2028, U+2029 and U+0085 end no line", () => {
  assert.deepEqual(parse(encode("data: a\u2028b\u2029c\u0085d\n\n")), [{ data: "a\u2028b\u2029c\u0085d" }]);
});

test("a long line in small pieces costs linear time", () => {
  const parser = new EventParser();
  const piece = encode("x".repeat(512));
  const began = performance.now();
  parser.push(encode("data: "));
  for (let size = 0; size < 4 << 20; size += piece.length) assert.deepEqual(parser.push(piece), []);
  const [event] = parser.push(encode("\n\n"));
  assert.equal(event?.data.length, 4 << 20);
  assert.ok(performance.now() - began < 2000, "4 MiB in 8,192 pieces took seconds");
});

test("many short lines in one large piece cost linear time", () => {
  const began = performance.now();
  assert.equal(parse(encode("data: x\n\n".repeat(200_000))).length, 200_000);
  assert.ok(performance.now() - began < 2000, "1.8 MB took seconds");
});

test("an event without end is refused, endless comments are not", () => {
  const parser = new EventParser();
  const comments = encode(": still here\n".repeat(10_000));
  for (let i = 0; i < 200; i++) assert.deepEqual(parser.push(comments), []);
  const piece = encode("y".repeat(1 << 20));
  assert.throws(() => {
    for (let i = 0; i < 20; i++) parser.push(piece);
  }, /too long/);
});
