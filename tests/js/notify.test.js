// Which videos have just ended, without a page.
import assert from "node:assert/strict";
import { test } from "node:test";
import { ended } from "../../magi_lite/ui/web/topbar/notify.js";

const job = (id, state) => ({ id, state });

test("only what ran and is over has ended", () => {
  const before = [job("a", "running"), job("b", "running"), job("c", "waiting"), job("d", "finished")],
    now = [job("a", "finished"), job("b", "paused"), job("c", "running"), job("d", "finished"), job("e", "failed")];
  assert.deepEqual(
    ended(before, now).map((one) => one.id),
    ["a"],
  );
  assert.deepEqual(ended([], now), []); // a page that opens tells of nothing that ended before
});
