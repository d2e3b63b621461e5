// A prompt that somebody writes: its words, what it is for, and for some styles examples before it.

import { t } from "./words.js";

export function openPrompt(root, { data, changed }) {
  const field = root.querySelector("#writing");
  const use = root.querySelector("#use-case");
  const sensitive = root.querySelector("#is-sensitive");
  const box = root.querySelector("#examples");
  const list = root.querySelector("#example-list");
  const row = root.querySelector("#example-row");
  const style = () => root.querySelector("input[name=style]:checked").value;

  function drawn() {
    box.hidden = style() !== "few_shot";
    if (!box.hidden && !list.children.length) add("", "");
  }

  function add(query, answer) {
    const made = row.content.firstElementChild.cloneNode(true);
    made.querySelector('[data-example="query"]').value = query;
    made.querySelector('[data-example="answer"]').value = answer;
    made.querySelector("[data-remove]").addEventListener("click", () => {
      made.remove();
      number();
      changed("");
    });
    list.append(made);
    number();
    return made;
  }

  function number() {
    [...list.children].forEach((one, place) => (one.querySelector("legend").textContent = t("chat.example", { number: place + 1 })));
  }

  function examples() {
    if (style() !== "few_shot") return [];
    return [...list.children]
      .map((one) => [one.querySelector('[data-example="query"]').value, one.querySelector('[data-example="answer"]').value])
      .filter(([query, answer]) => query.trim() || answer.trim());
  }

  root.querySelector(".prompt-writing").addEventListener("input", () => {
    drawn();
    changed("");
  });
  if (data.frozen) for (const one of root.querySelectorAll("select, [data-action=add_example]")) one.disabled = true;

  return {
    actions: {
      edit_focus: () => field.focus(),
      add_example: () => add("", "").querySelector("textarea").focus(),
    },
    value() {
      if (!field.value.trim() && !examples().length) return {};
      return {
        text: field.value,
        style: style(),
        use_case: use.value,
        is_sensitive: sensitive.checked,
        ...(examples().length ? { examples: examples() } : {}),
      };
    },
    restore(value) {
      field.value = value.text ?? "";
      if (value.use_case) use.value = value.use_case;
      sensitive.checked = Boolean(value.is_sensitive);
      const radio = root.querySelector(`input[name=style][value="${value.style ?? "plain"}"]`);
      if (radio) radio.checked = true;
      for (const [query, answer] of value.examples ?? []) add(query, answer);
      drawn();
    },
    problem() {
      if (!field.value.trim()) return t("chat.need_prompt");
      if (!use.value) return t("chat.need_use_case");
      if (style() !== "few_shot") return "";
      if (!examples().length) return t("chat.need_examples");
      return examples().every(([query, answer]) => query.trim() && answer.trim()) ? "" : t("chat.need_both");
    },
  };
}
