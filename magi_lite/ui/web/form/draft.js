// What the form holds, kept in the browser: in this tab, and for the next visit.
const KEY = "magi-draft",
  VERSION = 1;

function read(store) {
  try {
    const found = JSON.parse(store.getItem(KEY));
    return found && found.version === VERSION ? found : null;
  } catch {
    return null; // damaged: as if there were none
  }
}

/** The draft of this tab, else the newest of this browser: {job, values: {name: value}}, or null. */
export const loadDraft = () => read(sessionStorage) || read(localStorage);

export function saveDraft(job, names, values) {
  const kept = Object.fromEntries(names.map((name, i) => [name, values[i]])),
    text = JSON.stringify({ version: VERSION, job, values: kept });
  for (const store of [sessionStorage, localStorage]) {
    try {
      store.setItem(KEY, text);
    } catch {
      // a full or closed store must not keep anybody from working
    }
  }
}
