// The timeline's arithmetic: pure functions from blocks to blocks. A block is {id, start, end, prompt}, whole seconds,
// sorted, never overlapping; what else it carries (a cut, a picture) belongs to its start. `limit` is the length of the
// video in seconds (Infinity when endless); seconds before `locked` are rendered or in the making and cannot change.
let counter = 0;
export const newId = () => "b" + (counter += 1);
export const sort = (blocks) => blocks.slice().sort((a, b) => a.start - b.start);
export const clamp = (x, low, high) => Math.max(low, Math.min(high, x));
const edit = (blocks, id, change) => blocks.map((b) => (b.id === id ? { ...b, ...change } : { ...b }));
export const later = ({ id, end, prompt }, change) => ({ id, end, prompt, ...change }); // its part behind its start
export const find = (blocks, id) => blocks.find((b) => b.id === id);
export const same = (a, b) => JSON.stringify(a) === JSON.stringify(b);

// Drag a whole block to `target`. Neighbours whose middle is passed change places with it.
export function move(blocks, id, target, limit, locked) {
  const all = sort(blocks),
    block = find(all, id),
    width = block.end - block.start;
  if (block.start < locked) return all;
  let low = locked,
    high = limit;
  const shifted = new Map();
  if (target >= block.start) {
    low = block.start;
    for (const other of all.filter((b) => b.start >= block.end)) {
      if (target + width > (other.start + other.end) / 2) {
        shifted.set(other.id, -width);
        low = other.end - width;
      } else {
        high = other.start;
        break;
      }
    }
  } else {
    high = block.end;
    for (const other of all.filter((b) => b.end <= block.start).reverse()) {
      if (other.start >= locked && target < (other.start + other.end) / 2) {
        shifted.set(other.id, width);
        high = other.start + width;
      } else {
        low = Math.max(low, other.end);
        break;
      }
    }
  }
  const start = clamp(target, low, Math.max(low, high - width));
  return sort(
    all.map((b) => {
      if (b.id === id) return { ...b, start, end: start + width };
      const by = shifted.get(b.id) || 0;
      return { ...b, start: b.start + by, end: b.end + by };
    }),
  );
}

// Drag an edge. A neighbour in the way gives room down to one second.
export function resize(blocks, id, edge, target, limit, locked) {
  const all = sort(blocks),
    i = all.findIndex((b) => b.id === id),
    block = all[i];
  if (edge === "end") {
    const next = all[i + 1];
    const end = clamp(target, Math.max(block.start + 1, locked), next ? next.end - 1 : limit);
    return all.map((b, k) =>
      k === i ? { ...b, end } : k === i + 1 ? { ...b, start: Math.max(b.start, end) } : { ...b },
    );
  }
  if (block.start < locked) return all;
  const previous = all[i - 1];
  const low = previous ? Math.max(previous.start + 1, locked) : locked;
  const start = clamp(target, low, block.end - 1);
  return all.map((b, k) =>
    k === i ? { ...b, start } : k === i - 1 ? { ...b, end: Math.min(b.end, start) } : { ...b },
  );
}

export function split(blocks, id, at, locked) {
  const block = find(blocks, id);
  if (!block || block.end - block.start < 2) return blocks;
  let where = at !== null && at > block.start && at < block.end ? at : Math.floor((block.start + block.end) / 2);
  where = Math.max(where, Math.min(locked, block.end - 1));
  if (where <= block.start) return blocks;
  return sort([...edit(blocks, id, { end: where }), later(block, { id: newId(), start: where })]);
}

// Join a block with the one after it (or before it, when it is the last): the first prompt stays, the second is added.
export function merge(blocks, id, locked) {
  const all = sort(blocks),
    i = all.findIndex((b) => b.id === id);
  const left = all[i + 1] ? i : i - 1;
  if (i < 0 || left < 0 || all[left].start < locked) return all;
  const a = all[left],
    b = all[left + 1];
  const prompt = a.prompt === b.prompt || !b.prompt ? a.prompt : a.prompt ? a.prompt + ", " + b.prompt : b.prompt;
  return [...all.slice(0, left), { ...a, end: b.end, prompt }, ...all.slice(left + 2)];
}

export const remove = (blocks, id, locked) =>
  find(blocks, id) && find(blocks, id).start >= locked ? blocks.filter((b) => b.id !== id) : blocks;

// First free stretch at or after `from`; null when there is none.
export function gap(blocks, from, limit, locked) {
  let start = Math.max(from, locked);
  for (const b of sort(blocks)) {
    if (b.end <= start) continue;
    if (b.start > start) return { start, end: b.start };
    start = b.end;
  }
  return start < limit ? { start, end: limit } : null;
}

// A new block of up to `width` seconds in the first gap after `from`, else before it, else half of the last long block.
// `content` is what it holds: its prompt, and what else a block carries.
export function add(blocks, from, width, content, limit, locked) {
  const room = gap(blocks, from, limit, locked) || gap(blocks, 0, limit, locked);
  const id = newId();
  if (room)
    return {
      id,
      blocks: sort([...blocks, { ...content, id, start: room.start, end: Math.min(room.end, room.start + width) }]),
    };
  const long = sort(blocks)
    .reverse()
    .find((b) => b.end - Math.max(b.start, locked) >= 2);
  if (!long) return { id: null, blocks };
  const where = Math.max(Math.ceil((long.start + long.end) / 2), locked);
  const half = { ...content, id, start: where, end: long.end };
  return { id, blocks: sort([...edit(blocks, long.id, { end: where }), half]) };
}

// New text; of a block that is partly rendered only the open part takes it.
export function write(blocks, id, prompt, locked) {
  const block = find(blocks, id);
  if (!block || block.prompt === prompt || block.end <= locked) return { id, blocks };
  if (block.start >= locked) return { id, blocks: edit(blocks, id, { prompt }) };
  const fresh = newId();
  return {
    id: fresh,
    blocks: sort([...edit(blocks, id, { end: locked }), later(block, { id: fresh, start: locked, prompt })]),
  };
}

// The blocks as a video of `seconds` uses them: what lies beyond its end is left out.
export const within = (blocks, seconds) =>
  blocks.filter((b) => b.start < seconds).map((b) => (b.end > seconds ? { ...b, end: seconds } : { ...b }));

// The blocks with one put over what lies there: what it covers of others is cut off.
export function over(blocks, block) {
  const rest = blocks.flatMap((b) => [
    ...(b.start < block.start ? [{ ...b, end: Math.min(b.end, block.start) }] : []),
    ...(b.end > block.end ? [b.start < block.end ? later(b, { start: block.end }) : b] : []),
  ]);
  return sort([...rest, block]);
}

// How many blocks reach beyond the end of a video of `seconds`.
export const countBeyond = (blocks, seconds) => blocks.filter((b) => b.end > seconds).length;
