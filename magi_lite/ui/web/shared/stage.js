// Which job the stage shows, across reloads of the page.
const KEY = "magi-shown";

export const remember = (job) => sessionStorage.setItem(KEY, job || "");

/** What a page that opens shows: what runs, what it showed before, or what was cut off. */
export function current(state, jobs) {
  const before = sessionStorage.getItem(KEY),
    cut = jobs.filter((job) => job.state === "interrupted").pop();
  if (state.running) return state.running;
  if (before && jobs.some((job) => job.id === before)) return before;
  return cut ? cut.id : null;
}
