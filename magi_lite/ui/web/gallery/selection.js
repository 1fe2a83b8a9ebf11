// Which videos are selected: pure functions over ids in the order in which they are shown.

/** A click on `id` of `order`: alone it toggles; with Shift all from `anchor` to it join. {chosen, anchor}. */
export function click(chosen, order, id, anchor, withShift) {
  const from = order.indexOf(anchor),
    to = order.indexOf(id);
  if (withShift && from >= 0 && to >= 0) {
    const range = order.slice(Math.min(from, to), Math.max(from, to) + 1);
    return { chosen: new Set([...chosen, ...range]), anchor };
  }
  const next = new Set(chosen);
  if (!next.delete(id)) next.add(id);
  return { chosen: next, anchor: id };
}

/** The selection without what is not there any more. */
export const kept = (chosen, order) => new Set(order.filter((id) => chosen.has(id)));

/** How wide a tile of `height` pixels is: the video's own shape, within bounds that a caption can stand. */
export const tileWidth = (width, height, row) =>
  Math.round(Math.min(row * 2.4, Math.max(row * 0.72, (row * (width || 4)) / (height || 3))));

/** The year, month and day, and the time of today's, as people read them. `now` and `created` are dates. */
export function when(created, now, locale) {
  const day = (date) => date.toDateString();
  if (day(created) === day(now)) return created.toLocaleTimeString(locale, { hour: "2-digit", minute: "2-digit" });
  return created.toLocaleDateString(locale, { year: "numeric", month: "short", day: "numeric" });
}
