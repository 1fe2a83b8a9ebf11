// Cuts and pictures of blocks, without a browser.
import assert from "node:assert/strict";
import { test } from "node:test";
import * as Model from "../../magi_lite/ui/web/timeline/model.js";
import { beginsShot, marked, segment, beginning } from "../../magi_lite/ui/web/timeline/shots.js";
import { paste } from "../../magi_lite/ui/web/timeline/several.js";
import { State } from "../../magi_lite/ui/web/timeline/state.js";

const SHA = "0".repeat(64);
const BLOCKS = [
  { id: "a", start: 0, end: 3, prompt: "one" },
  {
    id: "b",
    start: 3,
    end: 7,
    prompt: "two",
    cut: true,
    image: "/runs/inputs/0123456789ab-cat.png",
    image_sha256: SHA,
  },
];

test("a block without marks goes to the server as ever", () => {
  assert.deepEqual(segment({ id: "a", start: 0, end: 1, prompt: "x", cut: false, image: null }), {
    start: 0,
    end: 1,
    prompt: "x",
  });
  assert.deepEqual(Object.keys(segment(BLOCKS[1])), ["start", "end", "prompt", "cut", "image", "image_sha256"]);
});

test("marks are put on blocks that have not begun, and taken off", () => {
  const cut = marked(BLOCKS, "a", { cut: true }, 0);
  assert.equal(cut[0].cut, true);
  assert.equal(beginsShot(cut[0]), false); // second 0 begins the video anyway
  assert.equal(marked(BLOCKS, "a", { cut: true }, 1)[0].cut, undefined);
  const off = marked(BLOCKS, "b", { image: null, image_sha256: null }, 0)[1];
  assert.deepEqual(Object.keys(off), ["id", "start", "end", "prompt", "cut"]);
});

test("what a block begins with stays at its beginning when it is divided", () => {
  const parts = Model.split(BLOCKS, "b", 5, 0);
  assert.deepEqual(parts.map(beginsShot), [false, true, false]);
  const written = Model.write(BLOCKS, "b", "three", 5).blocks;
  assert.deepEqual(written.map(beginsShot), [false, true, false]);
  assert.equal(Model.merge(BLOCKS, "a", 0)[0].image, undefined);
  const clip = { length: 1, blocks: [{ start: 0, end: 1, prompt: "new" }] };
  for (const insert of [false, true])
    assert.deepEqual(paste(BLOCKS, clip, 4, 0, insert).blocks.map(beginsShot), [false, true, false, false]);
  assert.equal(Model.move(BLOCKS, "b", 4, 20, 0)[1].image, BLOCKS[1].image);
});

test("the text about a block's beginning names its picture as the user called it", () => {
  assert.equal(beginning(BLOCKS[1]), " · from cat.png");
  assert.equal(beginning({ ...BLOCKS[1], image: null }), " · cut");
  assert.equal(beginning(BLOCKS[0]), "");
  assert.equal(
    beginning({ ...BLOCKS[1], image: `/runs/inputs/0123456789ab-${SHA.slice(0, 20)}.png` }),
    " · from a picture",
  );
});

test("marks come from the server, go back to it, and are undone", () => {
  const state = new State(() => {}),
    value = { version: 1, global_prompt: "", blend: 0, gaps: "hold", segments: BLOCKS.map(segment) };
  state.load(value);
  assert.deepEqual(state.value(), value);
  const [, second] = state.blocks;
  state.apply(marked(state.blocks, second.id, { cut: false, image: null }, 0));
  assert.equal(beginsShot(state.blocks[1]), false);
  state.undo();
  assert.deepEqual(state.value(), value);
});
