// What the form holds, kept in the browser: in this tab, and for the next visit. Words that were typed in another tab
// and never used are kept beside it, so that the last tab to be closed is not the only one that counts.
import { keep, recall } from "../shared/store.js";

const KEY = "magi-draft",
  OTHERS = "magi-drafts", // by tab: {at, typed: {prompt, timeline}}
  TAB = "magi-tab",
  CHANNEL = "magi-tabs",
  VERSION = 1,
  MOST = 8,
  PATIENCE = 400; // milliseconds in which a tab that is open answers

const same = (a, b) => JSON.stringify(a) === JSON.stringify(b);
const isDraft = (found) => (found && found.version === VERSION ? found : null);
const tab = String(recall(TAB, "sessionStorage") || Math.random().toString(36).slice(2));
keep(TAB, tab, "sessionStorage");
const channel = "BroadcastChannel" in window ? new BroadcastChannel(CHANNEL) : null;
let heard = () => {};
if (channel)
  channel.onmessage = ({ data }) => {
    if (data.ask) channel.postMessage({ here: tab });
    else heard(data.here);
  };

/** The draft of this tab, else the newest of this browser, then this tab's too: {job, values: {name: value}, base}. */
export function loadDraft() {
  const draft = isDraft(recall(KEY, "sessionStorage")) || isDraft(recall(KEY));
  if (draft) keep(KEY, draft, "sessionStorage");
  return draft;
}

/** Whether this tab had a draft of its own. */
export const isNewTab = () => !isDraft(recall(KEY, "sessionStorage"));

/** @param typed what of it was typed and not used yet, by name; null: nothing. @param base what it was before. */
export function saveDraft(job, names, values, typed, base) {
  const draft = { version: VERSION, job, values: Object.fromEntries(names.map((name, i) => [name, values[i]])), base };
  // A tab in which nothing happened is not the newest of this browser, however often it saves.
  if (!same(draft, recall(KEY, "sessionStorage"))) keep(KEY, draft);
  keep(KEY, draft, "sessionStorage");
  const others = recall(OTHERS) || {};
  if (!typed && !others[tab]) return;
  delete others[tab];
  keep(OTHERS, Object.fromEntries([...Object.entries(others), ...(typed ? [[tab, { typed }]] : [])].slice(-MOST)));
}

/** What was typed in tabs that are closed, the newest first; what is `typed` here as well is this tab's from now on. */
export async function leftBehind(typed) {
  if (!channel) return [];
  const open = new Set([tab]);
  heard = (one) => open.add(one);
  channel.postMessage({ ask: true });
  await new Promise((done) => setTimeout(done, PATIENCE));
  const closed = () => Object.entries(recall(OTHERS) || {}).filter(([one]) => !open.has(one));
  forget(closed().filter(([, draft]) => same(draft.typed, typed)));
  return closed()
    .map(([one, draft]) => ({ ...draft.typed, forget: () => forget([[one]]) }))
    .reverse();
}

function forget(entries) {
  const others = recall(OTHERS) || {};
  for (const [one] of entries) delete others[one];
  keep(OTHERS, others);
}
