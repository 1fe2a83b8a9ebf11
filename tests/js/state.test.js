// The timeline's history, and keys, without a browser.
import assert from "node:assert/strict";
import { test } from "node:test";
import { combination, rowFor } from "../../magi_lite/ui/web/shared/keys.js";
import { State } from "../../magi_lite/ui/web/timeline/state.js";

const timeline = (...segments) => ({
  version: 1,
  segments: segments.map(([start, end, prompt]) => ({ start, end, prompt })),
});

test("every change is one step of the history, there and back", () => {
  let changes = 0;
  const state = new State(() => (changes += 1));
  state.load(timeline([0, 2, "a"]));
  assert.equal(changes, 0); // what comes from outside is no edit
  const before = state.value();
  assert.ok(state.apply([{ ...state.blocks[0], end: 3 }]));
  assert.ok(!state.apply(state.blocks));
  assert.equal(changes, 1);
  const after = state.value();
  assert.ok(state.undo());
  assert.deepEqual(state.value(), before);
  assert.ok(state.redo());
  assert.deepEqual(state.value(), after);
  assert.ok(!state.redo());
});

test("what comes from the server can be undone", () => {
  const state = new State(() => {});
  state.load(timeline([0, 2, "mine"]));
  state.load(timeline([0, 4, "theirs"]));
  assert.ok(state.undo());
  assert.equal(state.blocks[0].prompt, "mine");
});

test("undo and redo bring back the selection that was shown with the blocks", () => {
  const state = new State(() => {});
  state.load(timeline([0, 2, "a"], [2, 4, "b"], [4, 6, "c"]));
  const [a, b, c] = state.blocks.map((block) => block.id);
  state.select(b, [a]);
  state.show();
  state.select("pasted"); // as an edit selects what it made, before anybody sees it
  state.apply([...state.blocks, { ...state.blocks[0], id: "pasted", start: 6, end: 8 }]);
  state.show();
  assert.ok(state.undo());
  assert.equal(state.selected, b);
  assert.deepEqual([...state.chosen].sort(), [a, b].sort());
  assert.ok(state.redo());
  assert.equal(state.selected, "pasted");
  state.select(c);
  state.show();
  state.select(null);
  state.apply(state.blocks.filter((block) => block.id !== c));
  state.show();
  assert.ok(state.undo());
  assert.deepEqual([state.selected, ...state.chosen], [c, c]);
});

test("an import hands its global prompt on and forgets the selection", () => {
  const heard = [];
  const state = new State((prompt) => heard.push(prompt));
  state.load(timeline([0, 2, "a"]));
  state.selected = state.blocks[0].id;
  state.adopt({ ...timeline([0, 3, "b"]), global_prompt: "in the rain", blend: 1, gaps: "hold" });
  assert.deepEqual(heard, ["in the rain"]);
  assert.equal(state.selected, null);
  assert.equal(state.value().blend, 1);
});

const press = (key, held = {}) =>
  combination({ key, ctrlKey: false, metaKey: false, altKey: false, shiftKey: false, ...held });

test("keys are read as the table writes them", () => {
  assert.equal(press(" "), "Space");
  assert.equal(press("z", { metaKey: true, shiftKey: true }), "Ctrl+Shift+Z");
  assert.equal(press("?", { shiftKey: true }), "?");
  assert.equal(press("ArrowLeft", { altKey: true, shiftKey: true }), "Alt+Shift+ArrowLeft");
});

test("a block with the focus has keys of its own", () => {
  assert.equal(rowFor("ArrowLeft", true)[3], "step");
  assert.equal(rowFor("ArrowLeft", false)[3], "frames");
  assert.equal(rowFor("S", false)[3], "split");
  assert.equal(rowFor("S", true)[3], "split");
  assert.equal(rowFor("Q", false), undefined);
});
