// The page's only poller: it asks the server for its state and publishes it to every panel.
import { app, emit, on, toast } from "../shared/bus.js";
import { current, remember } from "../shared/stage.js";
import { keep, recall } from "../shared/store.js";

const BUSY = 450; // milliseconds between questions while a video is made
const IDLE = 1200;
const HIDDEN = 3000;
const LOST = 1500;
const NOTICED = "mg-noticed"; // the last notice that this browser has shown

/** @param server its function `status`. @param draw called after every answer, and when answers fail to come. */
export function poller(element, server, draw) {
  // The queue's list and the shown job's preview come only when they are newer than what is known.
  let known = { id: null, preview: null, moving: [], preview_version: 0 },
    queueVersion = 0,
    jobs = [],
    failures = 0,
    first = true,
    timer = null,
    asked = 0,
    unsaved = false,
    noticed = recall(NOTICED); // also where the browser keeps nothing

  async function poll() {
    clearTimeout(timer);
    const mine = (asked += 1),
      wanted = app.attached || null;
    if (known.id !== wanted) known = { id: wanted, preview: null, moving: [], preview_version: 0 };
    let state = null;
    try {
      state = await server.status({ job: wanted, version: queueVersion, preview: known.preview_version });
    } catch {
      state = null;
    }
    // An answer that was overtaken tells of the past: another question is on its way, or the stage shows another job.
    if (mine !== asked || !element.isConnected) return;
    if (wanted !== (app.attached || null)) {
      poll();
      return;
    }
    if (!state || state.version === undefined) lost();
    else found(state, wanted);
    timer = setTimeout(poll, failures ? LOST : document.hidden ? HIDDEN : app.state && app.state.running ? BUSY : IDLE);
  }

  function lost() {
    failures += 1;
    if (failures < 2 || app.offline) return;
    app.offline = true;
    queueVersion = 0;
    emit("offline", true);
    draw(jobs);
  }

  function found(state, wanted) {
    failures = 0;
    if (app.offline) {
      app.offline = false;
      emit("offline", false);
      toast("Connected again. What you typed is still here.");
    }
    if (Boolean(state.trouble) !== unsaved) {
      unsaved = Boolean(state.trouble);
      toast(state.trouble || "The queue is saved again.", unsaved ? "error" : "info");
    }
    if (state.notice && state.notice !== noticed) {
      noticed = state.notice;
      keep(NOTICED, noticed);
      toast(noticed, "warning");
    }
    take(state, wanted);
  }

  function take(state, wanted) {
    if (state.jobs) {
      jobs = state.jobs;
      queueVersion = state.version;
    }
    const shown = state.shown && state.shown.id === wanted ? state.shown : null,
      before = app.state && app.state.shown;
    // A job that was taken off the list leaves its video, which is shown under its own name.
    if (wanted && !shown) app.attached = before && before.id === wanted && before.done ? before.project : null;
    if (shown) {
      if (shown.preview_version !== known.preview_version)
        Object.assign(known, { preview: shown.preview, moving: shown.moving || [] });
      known.preview_version = shown.preview_version;
      Object.assign(shown, { preview: known.preview, moving: known.moving });
    }
    app.state = { ...state, jobs, shown };
    if (first) {
      first = false;
      if (!app.attached) app.attached = current(state, jobs);
      if (app.attached) setTimeout(poll, 0);
    }
    remember(app.attached);
    app.readyAt = app.readyAt || performance.now(); // milliseconds from the visit to a page that lives
    draw(jobs);
    emit("state", app.state);
  }

  on(element, "poll", poll);
  document.addEventListener("visibilitychange", () => {
    if (!document.hidden) poll();
  });
  poll();
}
