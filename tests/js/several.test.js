// Edits of several blocks, without a page.
import assert from "node:assert/strict";
import { test } from "node:test";
import { between, copy, paste, push, removeAll, ripple, slide, trim } from "../../magi_lite/ui/web/timeline/several.js";

const block = (id, start, end) => ({ id, start, end, prompt: id });
const three = () => [block("a", 0, 2), block("b", 2, 4), block("c", 6, 8)];
const spans = (blocks) => blocks.map((b) => `${b.prompt} ${b.start}-${b.end}`).join(", ");
const apart = (blocks) => blocks.every((b, i) => b.start < b.end && (!i || blocks[i - 1].end <= b.start));

test("a selection reaches from one block to another, either way", () => {
  assert.deepEqual(between(three(), "c", "a"), ["a", "b", "c"]);
  assert.deepEqual(between(three(), "b", "c"), ["b", "c"]);
  assert.deepEqual(between(three(), "gone", "c"), ["c"]);
});

test("blocks that slide stop where others stand", () => {
  assert.equal(spans(slide(three(), new Set(["a", "b"]), 9, 20, 0)), "a 2-4, b 4-6, c 6-8");
  assert.equal(spans(slide(three(), new Set(["c"]), -9, 20, 0)), "a 0-2, b 2-4, c 4-6");
  assert.equal(spans(slide(three(), new Set(["c"]), 99, 10, 0)), "a 0-2, b 2-4, c 8-10");
  assert.equal(spans(slide(three(), new Set(["b", "c"]), -9, 20, 2)), "a 0-2, b 2-4, c 6-8");
  assert.equal(spans(slide(three(), new Set(["a"]), 1, 20, 1)), "a 0-2, b 2-4, c 6-8"); // it has begun
});

test("blocks that are pushed make way", () => {
  assert.equal(spans(push(three(), new Set(["a"]), 3, 20, 0)), "a 3-5, b 5-7, c 7-9");
  assert.equal(spans(push(three(), new Set(["c"]), -4, 20, 0)), "a 0-2, c 2-4, b 4-6");
  assert.equal(spans(push(three(), new Set(["b", "c"]), -9, 20, 0)), "b 0-2, a 2-4, c 4-6");
  assert.equal(spans(push(three(), new Set(["c"]), -9, 20, 1)), "a 0-2, c 2-4, b 4-6"); // a has begun
  assert.equal(spans(push(three(), new Set(["a"]), 1, 20, 1)), "a 0-2, b 2-4, c 6-8");
});

test("a plain trim stops at the neighbours, a ripple moves all behind", () => {
  assert.equal(spans(trim(three(), "a", "end", 4, 20, 0)), "a 0-2, b 2-4, c 6-8");
  assert.equal(spans(trim(three(), "b", "end", 9, 20, 0)), "a 0-2, b 2-6, c 6-8");
  assert.equal(spans(trim(three(), "c", "start", 0, 20, 0)), "a 0-2, b 2-4, c 4-8");
  assert.equal(spans(trim(three(), "c", "end", 99, 10, 0)), "a 0-2, b 2-4, c 6-10");
  assert.equal(spans(trim(three(), "c", "end", 0, 10, 0)), "a 0-2, b 2-4, c 6-7");
  assert.equal(spans(ripple(three(), "a", "end", 5, 0)), "a 0-5, b 5-7, c 9-11");
  assert.equal(spans(ripple(three(), "b", "end", 0, 0)), "a 0-2, b 2-3, c 5-7");
  assert.equal(spans(ripple(three(), "b", "start", 3, 0)), "a 0-2, b 2-3, c 5-7");
  assert.equal(spans(ripple(three(), "b", "start", 1, 0)), "a 0-2, b 2-5, c 7-9");
  assert.equal(spans(ripple(three(), "b", "end", 2, 4)), "a 0-2, b 2-4, c 6-8"); // rendered up to 4
  assert.equal(spans(ripple(three(), "b", "start", 3, 3)), "a 0-2, b 2-4, c 6-8");
});

test("deleting leaves a gap, or closes it", () => {
  assert.equal(spans(removeAll(three(), new Set(["a", "b"]), 0, false)), "c 6-8");
  assert.equal(spans(removeAll(three(), new Set(["a", "b"]), 0, true)), "c 2-4");
  assert.equal(spans(removeAll(three(), new Set(["a", "b"]), 1, true)), "a 0-2, c 4-6");
});

test("what was copied takes a place, or is put between", () => {
  const clip = copy(three(), new Set(["b", "c"]));
  assert.equal(clip.length, 6);
  assert.equal(copy(three(), new Set()), null);
  const first = paste(three(), clip, 8, 0, false);
  assert.equal(spans(first.blocks), "a 0-2, b 2-4, c 6-8, b 8-10, c 12-14");
  assert.equal(first.ids.length, 2);
  let { blocks } = paste(three(), { length: 2, blocks: [block("x", 0, 2)] }, 1, 0, false);
  assert.equal(spans(blocks), "a 0-1, x 1-3, b 3-4, c 6-8");
  ({ blocks } = paste(three(), { length: 2, blocks: [block("x", 0, 2)] }, 1, 0, true));
  assert.equal(spans(blocks), "a 0-1, x 1-3, a 3-4, b 4-6, c 8-10");
  ({ blocks } = paste([block("a", 0, 9)], { length: 2, blocks: [block("x", 0, 2)] }, 3, 0, false));
  assert.equal(spans(blocks), "a 0-3, x 3-5, a 5-9");
  assert.equal(new Set(blocks.map((b) => b.id)).size, 3);
  ({ blocks } = paste(three(), { length: 1, blocks: [block("x", 0, 1)] }, 0, 4, false));
  assert.equal(spans(blocks), "a 0-2, b 2-4, x 4-5, c 6-8");
});

test("whatever is done, blocks stay apart, sorted and whole", () => {
  let seed = 7;
  const chance = (n) => (seed = (seed * 48271) % 2147483647) % n;
  let blocks = three();
  for (let i = 0; i < 3000; i += 1) {
    const ids = new Set(blocks.filter(() => chance(3) === 0).map((b) => b.id)),
      one = blocks[chance(blocks.length || 1)],
      by = chance(21) - 10,
      locked = chance(6),
      edge = chance(2) ? "start" : "end";
    const done = blocks.filter((b) => b.end <= locked).map((b) => JSON.stringify(b));
    const edits = [
      () => slide(blocks, ids, by, 60, locked),
      () => push(blocks, ids, by, 60, locked),
      () => (one ? trim(blocks, one.id, edge, one[edge] + by, 60, locked) : blocks),
      () => (one ? ripple(blocks, one.id, edge, one[edge] + by, locked) : blocks),
      () => removeAll(blocks, ids, locked, chance(2) === 0),
      () =>
        ids.size && blocks.length < 20
          ? paste(blocks, copy(blocks, ids), chance(40), locked, chance(2)).blocks
          : blocks,
    ];
    blocks = edits[chance(edits.length)]();
    assert.ok(apart(blocks), spans(blocks));
    assert.equal(new Set(blocks.map((b) => b.id)).size, blocks.length);
    const now = new Set(blocks.map((b) => JSON.stringify(b)));
    assert.ok(
      done.every((text) => now.has(text)),
      "a rendered block was changed",
    );
    if (!blocks.length) blocks = three();
  }
});
