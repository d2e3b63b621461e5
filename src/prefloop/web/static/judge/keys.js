// From keys to actions. A key presses the visible button of its action (`data-action`), or calls what a task says.
//
// Keys are off while somebody types and while an input method composes; then only Ctrl+Enter, Ctrl+S and Escape work.
// Keys with Ctrl, Alt or Meta that the browser or assistive technology uses are never taken.

import { t } from "./words.js";

const USUAL = {
  submit: "Ctrl+Enter",
  save: "Ctrl+S",
  acknowledge: "Ctrl+Enter",
  go_on: "Ctrl+Enter",
  skip: "S",
  flag: "F",
  undo: "U",
  note: "N",
  tie: "T",
  both_bad: "B",
  focus_a: "[",
  focus_b: "]",
  raw: "P",
  wrap: "W",
  diff: "D",
  highlight: "H",
  next_card: "J",
  previous_card: "K",
  move_down: "Shift+J",
  move_up: "Shift+K",
  tie_previous: "=",
  toggle_unrankable: "X",
  keep_order: "O",
  correct: "C",
  incorrect: "X",
  unsure: "M",
  edit_focus: "E",
  guidelines: "G",
  help: "?",
};
for (let number = 1; number <= 8; number += 1) USUAL[`strength_${number}`] = String(number);

const ALSO = { "Alt+ArrowDown": "move_down", "Alt+ArrowUp": "move_up" };
const WHILE_TYPING = new Set(["Ctrl+Enter", "Ctrl+S"]);
const REPEATABLE = new Set(["next_card", "previous_card", "move_down", "move_up"]);
const LABELS = { acknowledge: "judge.acknowledge", go_on: "judge.go_on", help: "judge.keys" };

// The name of what was pressed: "S", "Shift+J", "Ctrl+Enter", "["
export function keyName(event) {
  const altGraph = event.getModifierState?.("AltGraph");
  let key = event.key;
  // a Cyrillic or Greek keyboard: take the place of the key
  if (key.length === 1 && key > "~" && /^(Key|Digit)/.test(event.code)) key = event.code.slice(-1);
  if (key === " ") key = "Space";
  const isLetter = /^[a-z]$/i.test(key);
  if (isLetter) key = key.toUpperCase();
  return [
    !altGraph && (event.ctrlKey || event.metaKey) && "Ctrl",
    !altGraph && event.altKey && "Alt",
    event.shiftKey && (isLetter || key.length > 1) && "Shift",
    key,
  ]
    .filter(Boolean)
    .join("+");
}

export function isTyping(target) {
  return Boolean(
    target.closest?.(
      "textarea, select, [contenteditable], input:not([type=radio], [type=checkbox], [type=button], [type=submit])",
    ),
  );
}

// Keys that an action may have: one visible sign, a letter also with Shift.
export function mayBeKey(name) {
  return /^(Shift\+[A-Z]|[!-~])$/.test(name);
}

export const shownKey = (name) => name.replace("ArrowDown", "↓").replace("ArrowUp", "↑");

export class Keys {
  constructor({ chosen, single, onSave }) {
    this.chosen = { ...chosen };
    this.single = single;
    this.onSave = onSave;
    this.own = { actions: {}, keys: {}, labels: {} }; // of the task
    this.page = {}; // of the page
    this.byKey = new Map();
    document.addEventListener("keydown", (event) => this.pressed(event));
    document.addEventListener("click", (event) => this.clicked(event));
  }

  keyOf(action) {
    return this.chosen[action] ?? this.own.keys[action] ?? USUAL[action] ?? "";
  }

  labelOf(action) {
    return this.own.labels[action] ?? t(LABELS[action] ?? `judge.${action}`);
  }

  // What a task adds: { actions: {name: function}, keys: {name: key}, labels: {name: words} }
  use(own) {
    this.own = { actions: {}, keys: {}, labels: {}, ...own };
    this.refresh();
  }

  // Actions that can be done now; those of the task come first and keep their keys.
  present() {
    const shown = [...document.querySelectorAll("[data-action]")].map((one) => one.dataset.action);
    return [...new Set([...Object.keys(this.own.actions), ...shown])].filter((one) => this.keyOf(one));
  }

  refresh(root = document) {
    this.byKey = new Map();
    for (const action of this.present()) {
      const key = this.keyOf(action);
      if (!this.byKey.has(key)) this.byKey.set(key, action);
    }
    for (const [key, action] of Object.entries(ALSO)) if (!this.byKey.has(key)) this.byKey.set(key, action);
    this.label(root);
  }

  // Writes the keys beside the words of the buttons.
  label(root) {
    for (const place of root.querySelectorAll("[data-action] kbd, [data-key-of]")) {
      const action = place.dataset.keyOf ?? place.closest("[data-action]").dataset.action;
      const key = this.keyOf(action);
      const isTaken = (this.byKey.get(key) ?? action) !== action;
      place.textContent = isTaken || (!this.single && !key.startsWith("Ctrl")) ? "" : shownKey(key);
      place.hidden = !place.textContent;
      place.setAttribute("aria-hidden", "true");
    }
  }

  pressed(event) {
    if (event.isComposing || event.keyCode === 229 || event.defaultPrevented) return;
    const name = keyName(event);
    const typing = isTyping(event.target);
    const dialog = document.querySelector("dialog[open]");
    if (dialog) {
      if (!typing && /^[1-9]$/.test(name)) dialog.querySelectorAll("input[type=radio]")[name - 1]?.click();
      if (name === "Ctrl+Enter") dialog.querySelector("form button.primary")?.click();
      return;
    }
    if (typing && name === "Escape") {
      event.target.blur();
      document.querySelector("#place h1")?.focus({ preventScroll: true });
      return;
    }
    if (typing && !WHILE_TYPING.has(name)) return;
    if (!this.single && !name.startsWith("Ctrl")) return;
    const action = this.byKey.get(name);
    if (!action || (event.repeat && !REPEATABLE.has(action))) {
      if (action) event.preventDefault();
      return;
    }
    if (this.run(action)) event.preventDefault();
  }

  clicked(event) {
    const button = event.target.closest?.("[data-action]");
    if (!button || button.matches("input")) return;
    const action = button.dataset.action;
    const does = this.own.actions[action] ?? this.page[action];
    if (!does) return; // a link goes where it goes
    event.preventDefault();
    does();
  }

  run(action) {
    const does = this.own.actions[action] ?? this.page[action];
    if (does) {
      does();
      return true;
    }
    const button = [...document.querySelectorAll(`[data-action="${action}"]`)].find((one) => one.checkVisibility?.() ?? true);
    button?.click();
    return Boolean(button);
  }

  // --- changing them ---

  openDialog() {
    const dialog = document.getElementById("keys-dialog");
    this.list();
    document.getElementById("single-keys").checked = this.single;
    document.getElementById("keys-message").hidden = true;
    if (!this.wired) this.wire(dialog);
    dialog.showModal();
  }

  wire(dialog) {
    this.wired = true;
    dialog.querySelector("[data-close]").addEventListener("click", () => dialog.close());
    document.getElementById("usual-keys").addEventListener("click", () => {
      this.chosen = {};
      this.saved(t("judge.keys_saved"));
    });
    document.getElementById("single-keys").addEventListener("change", (event) => {
      this.single = event.target.checked;
      this.saved(t("judge.keys_saved"));
    });
    document.getElementById("key-list").addEventListener("click", (event) => {
      const button = event.target.closest("button[data-change]");
      if (button) this.listen(button);
    });
  }

  list() {
    const rows = this.present().map((action) => {
      const row = document.createElement("li");
      const label = document.createElement("span");
      label.textContent = this.labelOf(action);
      label.className = "grow";
      const key = document.createElement("kbd");
      key.textContent = shownKey(this.keyOf(action));
      row.append(label, key);
      if (mayBeKey(this.keyOf(action))) {
        const button = document.createElement("button");
        button.type = "button";
        button.className = "button quiet small";
        button.dataset.change = action;
        button.textContent = t("judge.key_change");
        button.setAttribute("aria-label", t("judge.key_change_of", { action: this.labelOf(action) }));
        row.append(button);
      }
      return row;
    });
    document.getElementById("key-list").replaceChildren(...rows);
  }

  listen(button) {
    const action = button.dataset.change;
    button.textContent = t("judge.key_press");
    const stop = () => {
      button.removeEventListener("keydown", hear);
      button.removeEventListener("blur", stop);
      button.textContent = t("judge.key_change");
    };
    const hear = (event) => {
      if (event.isComposing || ["Shift", "Control", "Alt", "Meta", "AltGraph", "Tab"].includes(event.key)) return;
      event.preventDefault();
      event.stopPropagation();
      const name = keyName(event);
      stop();
      if (name !== "Escape") this.choose(action, name);
    };
    button.addEventListener("keydown", hear);
    button.addEventListener("blur", stop);
  }

  choose(action, name) {
    if (!mayBeKey(name)) {
      this.message(t("judge.key_taken", { key: shownKey(name) }));
      return;
    }
    const before = this.keyOf(action);
    const other = this.present().find((one) => one !== action && this.keyOf(one) === name);
    this.chosen[action] = name;
    if (other) this.chosen[other] = before;
    this.saved(
      other ? t("judge.key_used", { key: shownKey(name), action: this.labelOf(other) }) : t("judge.keys_saved"),
    );
    document.querySelector(`[data-change="${action}"]`)?.focus();
  }

  saved(words) {
    this.refresh();
    this.list();
    this.message(words);
    this.onSave({ keys: this.chosen, single_keys: this.single });
  }

  message(words) {
    const place = document.getElementById("keys-message");
    place.textContent = words;
    place.hidden = false;
  }
}
