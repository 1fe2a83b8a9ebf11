// At the end of a video, if wanted: a short sound, and a notification where the browser allows them.
import { on, toast } from "../shared/bus.js";
import { icon } from "../shared/icons.js";
import { keep, recall } from "../shared/store.js";

const KEY = "magi-notify";
const NOTES = [660, 880]; // Hz, one after the other
const NOTE = 0.16; // seconds
const SAYS = { finished: "is finished", failed: "failed", stopped: "was stopped" };

/** Jobs that ended between two lists of jobs: those that ran, and do not any more. */
export function ended(before, now) {
  const ran = new Set(before.filter((job) => job.state === "running").map((job) => job.id));
  return now.filter((job) => ran.has(job.id) && job.state in SAYS);
}

function ring() {
  const audio = new AudioContext(),
    volume = audio.createGain();
  volume.gain.value = 0.12;
  volume.connect(audio.destination);
  NOTES.forEach((pitch, i) => {
    const tone = audio.createOscillator();
    tone.frequency.value = pitch;
    tone.connect(volume);
    tone.start(audio.currentTime + i * NOTE);
    tone.stop(audio.currentTime + (i + 1) * NOTE);
    if (i === NOTES.length - 1) tone.onended = () => audio.close();
  });
}

export function mountNotify(element, button) {
  let wanted = recall(KEY) === "on",
    before = [];
  button.append(icon("bell"));
  function draw() {
    button.setAttribute("aria-pressed", String(wanted));
    button.title = wanted ? "A sound and a notification at the end of a video: on" : "Tell me when a video is done";
  }
  button.addEventListener("click", () => {
    wanted = !wanted;
    keep(KEY, wanted ? "on" : "off");
    draw();
    if (!wanted) return;
    ring();
    toast("A sound tells when a video is done, and a notification where the browser allows it.");
    if ("Notification" in window) Notification.requestPermission();
  });
  on(element, "state", (state) => {
    const done = ended(before, state.jobs);
    before = state.jobs;
    if (!wanted || !done.length) return;
    ring();
    if ("Notification" in window && Notification.permission === "granted")
      for (const job of done) new Notification(`MAGI Lite: “${job.title}” ${SAYS[job.state]}`, { tag: job.id });
  });
  draw();
}
