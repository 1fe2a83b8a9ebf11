// What the browser keeps for the page. A store that is closed, full or damaged keeps nobody from working.

/** What is kept under a name, or null; what is no JSON, such as an earlier version's words, comes as it is. */
export function recall(name, store = "localStorage") {
  let text = null;
  try {
    text = window[store].getItem(name);
    return JSON.parse(text);
  } catch {
    return text;
  }
}

/** Keep a value under a name; null: nothing any more. */
export function keep(name, value, store = "localStorage") {
  try {
    if (value === null) window[store].removeItem(name);
    else window[store].setItem(name, JSON.stringify(value));
  } catch {
    // see above
  }
}
