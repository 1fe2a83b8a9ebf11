// Answers of the server fill fields, and never over what was typed since the question left the page.
import { emit } from "./bus.js";

const held = {}; // what fields held when the question left
const given = {}; // what the question's last answer put there: nobody typed that
const LEAVE = { __type__: "update" };
let since = null;

/** Let the next question count what was typed since the fields held `values`, and not only since it leaves. */
export function holdUntil(values) {
  since = values;
}

/** Note what the fields hold; `values` are the question's inputs, then the fields. */
export function ask(key, values, inputs) {
  const fields = since && since.length === values.length - inputs ? since : values.slice(inputs);
  since = null;
  held[key] = fields.map((value) => JSON.stringify(value));
  return values;
}

/** The answer's value for each of the fields, by `names`, that still holds what it held; nothing for the others. */
export function answer(key, [mail, ...now], names) {
  const after = [...now];
  const filled = mail.values.map((value, i) => {
    const holds = JSON.stringify(now[i]),
      earlier = given[key] || (given[key] = {}),
      isUpdate = Boolean(value && value.__type__ === "update");
    if (holds === held[key][i] || holds === earlier[i]) {
      const plain = isUpdate ? value.value : value;
      if (plain !== undefined) {
        earlier[i] = JSON.stringify(plain);
        after[i] = plain;
      }
      return value;
    }
    if (!isUpdate) return LEAVE;
    const rest = { ...value };
    delete rest.value;
    return rest;
  });
  emit("filled", { names, before: now, after });
  return filled;
}
