// Numbers as people read them.

/** Bytes of a file or a disk with a unit: decimal, as systems show them. */
export const bytes = (n) => withUnit(n, 1000);
/** Bytes of memory with a unit: a card of 24 GB has 24 GB, as everywhere in plans. */
export const memory = (n) => withUnit(n, 1024);

function withUnit(n, step) {
  if (n === null || n === undefined) return "–";
  const units = ["B", "kB", "MB", "GB", "TB"];
  let i = 0;
  while (n >= step && i < units.length - 1) {
    n /= step;
    i += 1;
  }
  return (n >= 100 || i === 0 ? n.toFixed(0) : n.toFixed(1)) + " " + units[i];
}

const two = (x) => String(x).padStart(2, "0");

/** Seconds as 1:05 or 2:00:05. */
export function duration(s) {
  if (s === null || s === undefined || !isFinite(s)) return "–";
  s = Math.max(0, Math.round(s));
  const h = Math.floor(s / 3600),
    m = Math.floor(s / 60) % 60,
    r = s % 60;
  return h ? `${h}:${two(m)}:${two(r)}` : `${m}:${two(r)}`;
}

/** A time in a video as minutes, seconds and frames: 00:03:12. */
export function timecode(seconds, fps) {
  const frame = Math.max(0, Math.floor(seconds * fps + 1e-3)),
    whole = Math.floor(frame / fps);
  return `${two(Math.floor(whole / 60))}:${two(whole % 60)}:${two(frame % fps)}`;
}

/** "1 second", "3 seconds". */
export const count = (n, word) => `${n} ${word}${n === 1 ? "" : "s"}`;
