// Which job the stage shows, across reloads of the page.
import { keep, recall } from "./store.js";

const KEY = "magi-shown";

export const remember = (job) => keep(KEY, job || null, "sessionStorage");

/** What a page that opens shows: what runs, what it showed before (a job or a video), or what was cut off. */
export function current(state, jobs) {
  const before = recall(KEY, "sessionStorage"),
    cut = jobs.filter((job) => job.state === "interrupted").pop();
  if (state.running) return state.running;
  return before || (cut ? cut.id : null);
}
