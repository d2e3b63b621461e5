// Two answers: which is better, how clearly, on which axes, and what in them decided it.

import { openSpans } from "./spans.js";
import { openStrips } from "./strip.js";
import { t } from "./words.js";

export function openPairwise(root, { data, changed, views, keyOf }) {
  const strips = openStrips(root, changed);
  const spans = openSpans(root, { data, changed, views, keyOf });
  return {
    actions: { ...strips.actions, ...spans.actions },
    value() {
      const marked = spans.value();
      return { ...strips.value(), ...(marked.length ? { spans: marked } : {}) };
    },
    restore(value) {
      strips.restore(value);
      spans.restore(value.spans ?? []);
    },
    problem() {
      const { strength, verdict } = strips.value();
      return strength === undefined && verdict === undefined ? t("judge.need_answer") : "";
    },
    textsChanged: spans.draw,
    close: spans.close,
  };
}
