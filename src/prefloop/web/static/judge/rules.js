// Whether an answer keeps its rules, and how an attack on it went: scales that digits answer one after the other.

import { t } from "./words.js";

const LEVELS = ["definitely_break", "probably_break", "unsure", "probably_follow", "definitely_follow"];

export function openRules(root, { changed }) {
  const fields = [...root.querySelectorAll("[data-rule], [data-scale]")];
  const radios = (field) => [...field.querySelectorAll("input[type=radio]")];
  const chosen = (field) => radios(field).find((one) => one.checked)?.value ?? null;
  const said = root.querySelector("#attack-task");

  for (const radio of fields.flatMap(radios)) {
    radio.addEventListener("change", () => changed(""));
    radio.addEventListener("click", (event) => event.detail > 0 && radio.blur());
  }
  said?.addEventListener("input", () => changed(""));

  // the scale that has the focus, or the first without an answer, or the first
  function here(ofRules) {
    const some = ofRules ? fields.filter((one) => one.dataset.rule) : fields;
    const focused = document.activeElement?.closest?.("[data-rule], [data-scale]");
    return some.find((one) => one === focused) ?? some.find((one) => chosen(one) === null) ?? some[0];
  }

  function choose(field, number) {
    const radio = field && radios(field)[number - 1];
    if (!radio || radio.disabled) return;
    radio.checked = true;
    const name = field.querySelector("legend").textContent.trim();
    changed(`${name}: ${radio.closest("label").textContent.trim()}`);
  }

  const actions = {};
  const keys = {};
  const labels = {};
  const veil = root.querySelector('[data-action="veil"]');
  if (veil) {
    actions.veil = () => veil.setAttribute("aria-pressed", String(root.classList.toggle("veiled")));
    keys.veil = "V";
    labels.veil = t("chat.veil");
  }
  for (let number = 1; number <= 5; number += 1) {
    actions[`level_${number}`] = () => choose(here(false), number);
    keys[`level_${number}`] = String(number);
    labels[`level_${number}`] = `${number}: ${t(`chat.${LEVELS[number - 1]}`)}`;
  }
  if (fields.some((one) => one.dataset.rule)) {
    actions.level_unsure = () => choose(here(true), LEVELS.indexOf("unsure") + 1);
    keys.level_unsure = "U";
    labels.level_unsure = t("chat.unsure");
  }

  return {
    actions,
    keys,
    labels,
    value() {
      const levels = {};
      const attack = {};
      for (const field of fields) {
        const value = chosen(field);
        if (value === null) continue;
        if (field.dataset.rule) levels[field.dataset.rule] = value;
        else attack[field.dataset.scale] = Number(value);
      }
      if (said?.value.trim()) attack.task = said.value;
      return { levels, ...(Object.keys(attack).length ? { attack } : {}) };
    },
    restore({ levels = {}, attack = {} }) {
      for (const field of fields) {
        const value = field.dataset.rule ? levels[field.dataset.rule] : attack?.[field.dataset.scale];
        const radio = radios(field).find((one) => one.value === String(value));
        if (radio) radio.checked = true;
      }
      if (said && attack?.task) said.value = attack.task;
    },
    problem() {
      const open = fields.find((one) => chosen(one) === null);
      if (!open) return "";
      return open.dataset.rule ? t("chat.need_level") : t("judge.need_field", { field: open.querySelector("legend").textContent.trim() });
    },
  };
}
