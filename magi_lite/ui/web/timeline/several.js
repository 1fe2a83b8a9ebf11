// Edits of several blocks at once; trims and moves in which others stay or make way. Pure functions, as in model.js.
import { clamp, later, newId, sort } from "./model.js";

/** Ids of the blocks from `a` to `b`, both included. */
export function between(blocks, a, b) {
  const order = sort(blocks).map((block) => block.id),
    places = [order.indexOf(a), order.indexOf(b)];
  if (places.includes(-1)) return [b];
  return order.slice(Math.min(...places), Math.max(...places) + 1);
}

/** Move blocks together; they stop where others stand. */
export function slide(blocks, ids, by, limit, locked) {
  const mine = blocks.filter((block) => ids.has(block.id) && block.start >= locked),
    others = blocks.filter((block) => !ids.has(block.id) || block.start < locked);
  if (!mine.length) return sort(blocks);
  let low = -Infinity,
    high = Infinity;
  for (const block of mine) {
    low = Math.max(low, locked - block.start);
    high = Math.min(high, limit - block.end);
    for (const other of others) {
      if (other.end <= block.start) low = Math.max(low, other.end - block.start);
      else high = Math.min(high, other.start - block.end);
    }
  }
  const step = clamp(by, Math.min(0, low), Math.max(0, high));
  return shift(blocks, (block) => (mine.includes(block) ? step : 0));
}

/** Move blocks together; others that are in the way go behind them. */
export function push(blocks, ids, by, limit, locked) {
  const mine = blocks.filter((block) => ids.has(block.id) && block.start >= locked);
  if (!mine.length) return sort(blocks);
  const first = Math.min(...mine.map((block) => block.start)),
    last = Math.max(...mine.map((block) => block.end)),
    fixed = blocks.filter((block) => !mine.includes(block) && block.start < locked),
    floor = Math.max(locked, ...fixed.map((block) => block.end)),
    step = clamp(by, floor - first, Math.max(0, limit - last)),
    moved = mine.map((block) => ({ ...block, start: block.start + step, end: block.end + step }));
  return sort([...fixed, ...placeAround(blocks, [...mine, ...fixed], moved), ...moved]);
}

/** All blocks but those `taken`, moved to the right as far as `standing` ones are in their way. */
function placeAround(blocks, taken, standing) {
  const placed = [];
  let free = 0;
  for (const block of sort(blocks.filter((one) => !taken.includes(one)))) {
    const width = block.end - block.start;
    let start = Math.max(block.start, free);
    for (const wall of sort(standing)) if (start < wall.end && start + width > wall.start) start = wall.end;
    free = start + width;
    placed.push({ ...block, start, end: free });
  }
  return placed;
}

const shift = (blocks, by) =>
  sort(blocks.map((block) => ({ ...block, start: block.start + by(block), end: block.end + by(block) })));

/** Drag an edge; it stops at the neighbours. */
export function trim(blocks, id, edge, target, limit, locked) {
  const all = sort(blocks),
    i = all.findIndex((block) => block.id === id),
    block = all[i],
    low = all[i - 1] ? Math.max(all[i - 1].end, locked) : locked,
    high = all[i + 1] ? all[i + 1].start : limit;
  if ((edge === "start" && block.start < locked) || block.end <= locked) return all;
  const change =
    edge === "end"
      ? { end: clamp(target, Math.max(block.start + 1, locked), Math.max(high, block.end)) }
      : { start: clamp(target, Math.min(low, block.start), block.end - 1) };
  return all.map((one) => (one === block ? { ...one, ...change } : { ...one }));
}

/** Drag an edge; all blocks behind move with it, so that the gaps stay as they are. */
export function ripple(blocks, id, edge, target, locked) {
  const block = blocks.find((one) => one.id === id);
  if ((edge === "start" && block.start < locked) || block.end <= locked) return sort(blocks);
  const by = edge === "end" ? target - block.end : block.start - target,
    least = Math.max(block.start + 1, locked),
    end = Math.max(least, block.end + by),
    step = end - block.end;
  return sort(
    blocks.map((one) => {
      if (one === block) return { ...one, end };
      return one.start >= block.end ? { ...one, start: one.start + step, end: one.end + step } : { ...one };
    }),
  );
}

/** Take blocks away, those that have begun excepted; with `close` the ones behind fill the gap. */
export function removeAll(blocks, ids, locked, close) {
  const gone = blocks.filter((block) => ids.has(block.id) && block.start >= locked);
  const left = blocks.filter((block) => !gone.includes(block));
  if (!close) return sort(left.map((block) => ({ ...block })));
  const before = (at) => gone.reduce((sum, block) => sum + (block.end <= at ? block.end - block.start : 0), 0);
  return shift(left, (block) => -before(block.start));
}

/** What is copied: blocks from second 0 on, and their length. Null where there is none. */
export function copy(blocks, ids) {
  const mine = sort(blocks.filter((block) => ids.has(block.id)));
  if (!mine.length) return null;
  const first = mine[0].start;
  return {
    length: mine[mine.length - 1].end - first,
    blocks: mine.map((block) => ({ ...block, id: undefined, start: block.start - first, end: block.end - first })),
  };
}

/**
 * Put what was copied at second `at`. With `insert` all behind makes room; else it takes the place of what is there.
 * Answers {blocks, ids}: all blocks, and the ids of the new ones.
 */
export function paste(blocks, clip, at, locked, insert) {
  const start = Math.max(at, locked),
    end = start + clip.length,
    fresh = clip.blocks.map((block) => ({
      ...block,
      id: newId(),
      start: block.start + start,
      end: block.end + start,
    }));
  const left = [];
  for (const block of blocks) {
    if (block.end <= start || (!insert && block.start >= end)) left.push({ ...block });
    else if (insert) {
      if (block.start >= start) left.push({ ...block, start: block.start + clip.length, end: block.end + clip.length });
      else left.push({ ...block, end: start }, later(block, { id: newId(), start: end, end: block.end + clip.length }));
    } else {
      if (block.start < start) left.push({ ...block, end: start });
      if (block.end > end) left.push(later(block, { id: block.start < start ? newId() : block.id, start: end }));
    }
  }
  return { blocks: sort([...left, ...fresh]), ids: fresh.map((block) => block.id) };
}
