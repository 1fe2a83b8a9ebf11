// The gallery's selection, without a page.
import assert from "node:assert/strict";
import { test } from "node:test";
import { click, kept, tileWidth, when } from "../../magi_lite/ui/web/gallery/selection.js";

const order = ["a", "b", "c", "d"];

test("a click toggles, and Shift takes all between", () => {
  let state = click(new Set(), order, "b", null, false);
  assert.deepEqual([...state.chosen], ["b"]);
  state = click(state.chosen, order, "d", state.anchor, true);
  assert.deepEqual([...state.chosen].sort(), ["b", "c", "d"]);
  state = click(state.chosen, order, "a", state.anchor, true); // from the same anchor, the other way
  assert.deepEqual([...state.chosen].sort(), order);
  state = click(state.chosen, order, "c", state.anchor, false);
  assert.deepEqual([...state.chosen].sort(), ["a", "b", "d"]);
  assert.deepEqual([...click(new Set(), order, "c", "gone", true).chosen], ["c"]);
});

test("what is gone is not selected", () => {
  assert.deepEqual([...kept(new Set(["a", "x"]), order)], ["a"]);
});

test("a tile has its video's shape, within bounds", () => {
  assert.equal(tileWidth(64, 64, 150), 150);
  assert.equal(tileWidth(1280, 720, 150), 267);
  assert.equal(tileWidth(10000, 16, 150), 360);
  assert.equal(tileWidth(16, 10000, 150), 108);
  assert.equal(tileWidth(0, 0, 150), 200);
});

test("a date is short", () => {
  const now = new Date(2026, 5, 3, 12, 0);
  assert.equal(when(new Date(2026, 5, 3, 9, 5), now, "en-GB"), "09:05");
  assert.equal(when(new Date(2025, 0, 2, 9, 5), now, "en-GB"), "2 Jan 2025");
});
