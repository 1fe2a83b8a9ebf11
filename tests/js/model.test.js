// The timeline's arithmetic, without a browser.
import assert from "node:assert/strict";
import { test } from "node:test";
import * as Model from "../../magi_lite/ui/web/timeline/model.js";

const blocks = (...parts) =>
  parts.map(([start, end, prompt], i) => ({ id: "t" + i, start, end, prompt: prompt || "p" + i }));
const plain = (list) => list.map(({ start, end, prompt }) => [start, end, prompt]);

test("a block moves into free seconds and stops at its neighbour", () => {
  const all = blocks([0, 2], [4, 6]);
  assert.deepEqual(plain(Model.move(all, "t0", 1, 8, 0)), [
    [1, 3, "p0"],
    [4, 6, "p1"],
  ]);
  assert.deepEqual(plain(Model.move(all, "t0", 2, 8, 0))[0], [2, 4, "p0"]);
});

test("a block that passes a neighbour's middle changes places with it", () => {
  const moved = Model.move(blocks([0, 2], [2, 6], [6, 8]), "t0", 4, 8, 0);
  assert.deepEqual(plain(moved), [
    [0, 4, "p1"],
    [4, 6, "p0"],
    [6, 8, "p2"],
  ]);
});

test("no block leaves the video or enters what is locked", () => {
  const all = blocks([2, 4]);
  assert.deepEqual(plain(Model.move(all, "t0", 99, 8, 0)), [[6, 8, "p0"]]);
  assert.deepEqual(plain(Model.move(all, "t0", -5, 8, 1)), [[1, 3, "p0"]]);
  assert.deepEqual(plain(Model.move(all, "t0", 5, 8, 3)), [[2, 4, "p0"]]); // it has begun
});

test("an edge takes seconds from a neighbour down to one", () => {
  const all = blocks([0, 3], [3, 6]);
  assert.deepEqual(plain(Model.resize(all, "t0", "end", 99, 8, 0)), [
    [0, 5, "p0"],
    [5, 6, "p1"],
  ]);
  assert.deepEqual(plain(Model.resize(all, "t1", "start", -9, 8, 0)), [
    [0, 1, "p0"],
    [1, 6, "p1"],
  ]);
  assert.deepEqual(plain(Model.resize(all, "t1", "end", 99, 8, 0))[1], [3, 8, "p1"]);
});

test("split and merge are each other's inverse where the prompts are one", () => {
  const all = blocks([0, 6, "a"]);
  const halves = Model.split(all, "t0", 2, 0);
  assert.deepEqual(plain(halves), [
    [0, 2, "a"],
    [2, 6, "a"],
  ]);
  assert.deepEqual(plain(Model.merge(halves, "t0", 0)), [[0, 6, "a"]]);
  assert.equal(Model.split(blocks([0, 1]), "t0", null, 0).length, 1); // a second cannot be cut
});

test("a split of a block that has begun happens in its free part", () => {
  assert.deepEqual(plain(Model.split(blocks([0, 8, "a"]), "t0", 2, 5)), [
    [0, 5, "a"],
    [5, 8, "a"],
  ]);
});

test("a new block takes the first gap, else half of the last long block", () => {
  const gap = Model.add(blocks([0, 2], [3, 8]), 0, 2, { prompt: "new" }, 8, 0);
  assert.deepEqual(plain(gap.blocks)[1], [2, 3, "new"]);
  const half = Model.add(blocks([0, 8, "a"]), 8, 2, { prompt: "new" }, 8, 0);
  assert.deepEqual(plain(half.blocks), [
    [0, 4, "a"],
    [4, 8, "new"],
  ]);
  assert.equal(Model.add(blocks([0, 1]), 1, 2, { prompt: "new" }, 1, 0).id, null);
  for (const [taken, limit] of [
    [[0, 2], 8],
    [[0, 8, "a"], 8],
  ]) {
    const copy = Model.add(blocks(taken), 2, 2, { id: "x", start: 0, end: 1, prompt: "new", cut: true }, limit, 0);
    assert.deepEqual([Model.find(copy.blocks, copy.id).cut, Model.find(copy.blocks, "x")], [true, undefined]);
  }
});

test("new text of a block that is partly rendered goes to its open part only", () => {
  const result = Model.write(blocks([0, 8, "a"]), "t0", "b", 3);
  assert.deepEqual(plain(result.blocks), [
    [0, 3, "a"],
    [3, 8, "b"],
  ]);
  assert.deepEqual(plain(Model.write(blocks([0, 3, "a"]), "t0", "b", 3).blocks), [[0, 3, "a"]]);
});

test("blocks beyond the end are left out of the video and stay as they are", () => {
  const all = blocks([0, 2, "a"], [2, 6, "b"], [6, 8, "c"]);
  assert.deepEqual(plain(Model.within(all, 4)), [
    [0, 2, "a"],
    [2, 4, "b"],
  ]);
  assert.equal(Model.countBeyond(all, 4), 2);
  assert.equal(Model.countBeyond(all, Infinity), 0);
  assert.equal(all[1].end, 6);
});

test("whatever is done, blocks stay sorted, whole and apart", () => {
  let seed = 20251125;
  const random = (n) => (seed = (seed * 1103515245 + 12345) % 2147483648) % n;
  for (let round = 0; round < 400; round += 1) {
    const limit = 6 + random(20),
      locked = random(4);
    let all = [];
    for (let i = 0; i < 5; i += 1)
      all = Model.add(all, random(limit), 1 + random(4), { prompt: "p" + i }, limit, locked).blocks;
    for (let i = 0; i < 8 && all.length; i += 1) {
      const id = all[random(all.length)].id,
        to = random(limit + 6) - 3;
      const doings = [
        () => Model.move(all, id, to, limit, locked),
        () => Model.resize(all, id, "end", to, limit, locked),
        () => Model.resize(all, id, "start", to, limit, locked),
        () => Model.split(all, id, to, locked),
        () => Model.merge(all, id, locked),
      ];
      all = doings[random(doings.length)]();
      all.forEach((block, k) => {
        assert.ok(block.start < block.end && block.end <= limit && block.start >= 0, JSON.stringify(all));
        if (k) assert.ok(all[k - 1].end <= block.start, JSON.stringify(all));
      });
    }
  }
});

test("a block put over others cuts off what it covers, and leaves the rest as it is", () => {
  const all = [
    { start: 0, end: 4, prompt: "a" },
    { start: 4, end: 6, prompt: "b", cut: true },
    { start: 6, end: 9, prompt: "c", cut: true },
  ];
  const put = (start, end) => Model.over(all, { start, end, prompt: "new" }).map((b) => ({ ...b, id: 0 }));
  const at = (list) => list.map((b) => ({ ...b, id: 0 }));
  assert.deepEqual(put(4, 6), at([all[0], { start: 4, end: 6, prompt: "new" }, all[2]]));
  assert.deepEqual(
    put(1, 7),
    at([
      { start: 0, end: 1, prompt: "a" },
      { start: 1, end: 7, prompt: "new" },
      { start: 7, end: 9, prompt: "c" },
    ]),
  );
  assert.deepEqual(
    put(1, 2).map(({ start, end, prompt }) => [start, end, prompt]),
    [
      [0, 1, "a"],
      [1, 2, "new"],
      [2, 4, "a"],
      [4, 6, "b"],
      [6, 9, "c"],
    ],
  );
});
