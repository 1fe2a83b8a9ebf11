// The bar between the stage and the timeline: dragged, or moved by keys; its place is kept.
import { onEscape } from "../shared/bus.js";
import { keep as store, recall } from "../shared/store.js";

const KEY = "magi-dock",
  LEAST = 150,
  STEP = 16;

export function mountSplitter(bar) {
  const root = document.documentElement;
  const most = () => Math.max(LEAST, Math.round(window.innerHeight * 0.65));
  function set(height, keep) {
    const next = Math.round(Math.min(most(), Math.max(LEAST, height)));
    root.style.setProperty("--mg-dock", next + "px");
    bar.setAttribute("aria-valuenow", String(next));
    bar.setAttribute("aria-valuemin", String(LEAST));
    bar.setAttribute("aria-valuemax", String(most()));
    if (keep) store(KEY, next);
  }
  const height = () => Number(bar.getAttribute("aria-valuenow"));
  set(Number(recall(KEY)) || 226, false);

  let from = null;
  bar.addEventListener("pointerdown", (event) => {
    if (event.button) return;
    event.preventDefault();
    from = { y: event.clientY, height: height() };
    bar.setPointerCapture(event.pointerId);
  });
  bar.addEventListener("pointermove", (event) => {
    if (from) set(from.height + from.y - event.clientY, false);
  });
  for (const name of ["pointerup", "pointercancel"])
    bar.addEventListener(name, () => {
      if (from) set(height(), true);
      from = null;
    });
  onEscape(
    bar,
    () => from !== null,
    () => {
      set(from.height, false);
      from = null;
    },
  );
  bar.addEventListener("keydown", (event) => {
    const by = { ArrowUp: STEP, ArrowDown: -STEP, PageUp: 5 * STEP, PageDown: -5 * STEP }[event.key];
    if (!by) return;
    event.preventDefault();
    event.stopPropagation();
    set(height() + by, true);
  });
}
