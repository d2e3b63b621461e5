// The absolute form: fields from the project, digits for the scale, a letter for each flag.

import { t } from "./words.js";

export function openForm(root, { data, changed }) {
  const fields = data.form;
  const named = (name) => [...root.querySelectorAll(`[name="${CSS.escape(name)}"]`)];
  const checked = (name) => named(name).find((one) => one.checked)?.value ?? null;
  const scales = fields.filter((one) => one.type === "likert");

  for (const place of root.querySelectorAll(".absolute-form :is(input, textarea)")) {
    place.addEventListener(place.matches("textarea") ? "input" : "change", () => changed(""));
    place.addEventListener("click", (event) => event.detail > 0 && place.matches("[type=radio]") && place.blur());
  }

  // the scale that has the focus, or the first without an answer, or the first
  function scaleHere() {
    const focused = document.activeElement?.closest?.("[data-field]")?.dataset.field;
    return (
      scales.find((one) => one.name === focused) ?? scales.find((one) => checked(one.name) === null) ?? scales[0]
    );
  }

  function rate(number) {
    const scale = scaleHere();
    if (!scale) return;
    named(scale.name)[number - 1].checked = true;
    changed(`${scale.label}: ${number}`);
  }

  function toggle(field) {
    const [box] = named(field.name);
    box.checked = !box.checked;
    changed(`${field.label}: ${box.checked ? "✓" : "–"}`);
  }

  const actions = {};
  const keys = {};
  const labels = {};
  if (scales.length) {
    for (let number = 1; number <= 7; number += 1) {
      actions[`rate_${number}`] = () => rate(number);
      keys[`rate_${number}`] = String(number);
      labels[`rate_${number}`] = `${scales[0].label}: ${number}`;
    }
  }
  for (const field of fields.filter((one) => one.type === "flag" && one.key)) {
    actions[`field_${field.name}`] = () => toggle(field);
    keys[`field_${field.name}`] = field.key.toUpperCase();
    labels[`field_${field.name}`] = field.label;
  }

  // a needed flag counts as answered when it is not set: "no" is an answer
  function value() {
    const ratings = {};
    const flags = {};
    const choices = {};
    const texts = {};
    for (const { name, type, required } of fields) {
      if (type === "likert" && checked(name) !== null) ratings[name] = Number(checked(name));
      if (type === "flag" && (named(name)[0].checked || required)) flags[name] = named(name)[0].checked;
      if (type === "choice" && checked(name) !== null) choices[name] = checked(name);
      if (type === "text" && named(name)[0].value.trim()) texts[name] = named(name)[0].value;
    }
    return { ratings, flags, choices, texts };
  }

  return {
    actions,
    keys,
    labels,
    value,
    restore({ ratings = {}, flags = {}, choices = {}, texts = {} }) {
      for (const [name, one] of [...Object.entries(ratings), ...Object.entries(choices)]) {
        const radio = named(name).find((other) => other.value === String(one));
        if (radio) radio.checked = true;
      }
      for (const [name, isSet] of Object.entries(flags)) if (named(name)[0]) named(name)[0].checked = isSet;
      for (const [name, text] of Object.entries(texts)) if (named(name)[0]) named(name)[0].value = text;
    },
    problem() {
      const filled = value();
      const missing = fields.find(
        ({ name, type, required }) =>
          required &&
          ((type === "likert" && !(name in filled.ratings)) ||
            (type === "choice" && !(name in filled.choices)) ||
            (type === "text" && !(name in filled.texts))),
      );
      if (missing) return t("judge.need_field", { field: missing.label });
      const isEmpty = Object.values(filled).every((part) => Object.keys(part).length === 0);
      return isEmpty && fields.every((one) => one.type !== "flag") ? t("judge.need_answer") : "";
    },
  };
}
