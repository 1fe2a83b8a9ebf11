// The page's script: every panel by name, and what Gradio's own inline handlers and the tests reach as `magi`.
import { app, call, emit, on, toast } from "./shared/bus.js";
import { sure } from "./shared/dom.js";
import { answer, ask } from "./shared/fills.js";
import { form, mount as formPanel } from "./form/form.js";
import { mount as fold } from "./fold/fold.js";
import { mount as gallery } from "./gallery/gallery.js";
import { mount as queue } from "./queue/queue.js";
import { mount as source } from "./source/source.js";
import { mount as steer } from "./steer/steer.js";
import { mount as system } from "./system/system.js";
import { mount as timeline } from "./timeline/timeline.js";
import { mount as topbar } from "./topbar/topbar.js";
import { mount as watch } from "./watch/watch.js";

const PANELS = { form: formPanel, fold, gallery, queue, source, steer, system, timeline, topbar, watch };

window.magi = Object.assign(app, {
  call,
  emit,
  on,
  toast,
  ask,
  answer,
  sure,
  form,
  mount: (name, scope) => PANELS[name](scope),
});
