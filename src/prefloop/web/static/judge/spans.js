// Words that were marked in an answer. Places are characters of the text itself, so marking happens in the plain view.

import { toast } from "../toast.js";
import { t } from "./words.js";

const LONGEST_SHOWN = 60;

export function openSpans(root, { data, changed, views, keyOf }) {
  const box = root.querySelector("#spans");
  const list = box.querySelector("ul");
  let spans = []; // { position, start, end, note, words }

  function mark() {
    if (!views.isRaw()) {
      views.showRaw();
      box.hidden = false;
      hint();
      toast(t("judge.spans_help", { key: keyOf("highlight") }));
      return;
    }
    const selected = selectedSpan(root, data.unseen);
    if (!selected) {
      box.hidden = false;
      hint();
      toast(t("judge.spans_help", { key: keyOf("highlight") }));
      return;
    }
    spans = [...spans.filter((one) => !overlaps(one, selected)), selected];
    getSelection().removeAllRanges();
    show();
    changed(t("judge.highlight"));
  }

  function hint() {
    box.querySelector(".hint").textContent = t("judge.spans_help", { key: keyOf("highlight") });
  }

  function show() {
    box.hidden = spans.length === 0;
    box.querySelector(".hint").textContent = "";
    list.replaceChildren(
      ...spans.map((span) => {
        const row = document.createElement("li");
        const words = document.createElement("q");
        words.dir = "auto";
        words.textContent = span.words || "…";
        const button = document.createElement("button");
        button.type = "button";
        button.className = "button quiet small icon";
        button.textContent = "×";
        button.setAttribute("aria-label", t("judge.span_remove", { words: span.words }));
        button.addEventListener("click", () => {
          spans = spans.filter((one) => one !== span);
          show();
          changed("");
        });
        row.append("AB"[span.position], " ", words, button);
        return row;
      }),
    );
    draw();
  }

  function draw() {
    if (!globalThis.Highlight || !CSS.highlights) return; // the list says it too
    const ranges = views.isRaw() ? spans.map((one) => rangeOf(root, one, data.unseen[one.position])).filter(Boolean) : [];
    CSS.highlights.set("judged", new Highlight(...ranges));
    for (const [place, range] of ranges.entries()) if (!spans[place].words) spans[place].words = excerpt(range.toString());
  }

  // arrow keys select words in the answer that has the focus
  root.addEventListener("keydown", (event) => {
    const text = event.target.closest?.("[data-text]");
    if (!text || event.target !== text || !views.isRaw() || event.ctrlKey || event.altKey || event.metaKey) return;
    const forward = { ArrowRight: true, ArrowLeft: false }[event.key];
    if (forward === undefined) return;
    const selection = getSelection();
    if (!selection.modify) return;
    if (!text.contains(selection.focusNode)) selection.collapse(text.querySelector("pre") ?? text, 0);
    selection.modify(event.shiftKey ? "extend" : "move", forward ? "forward" : "backward", "word");
    event.preventDefault();
  });

  return {
    actions: { highlight: mark },
    value: () => spans.map(({ position, start, end, note }) => ({ position, start, end, note })),
    restore(stored) {
      spans = stored.map((one) => ({ note: "", words: "", ...one }));
      if (spans.length) show();
    },
    draw,
    close: () => CSS.highlights?.delete("judged"),
  };
}

const overlaps = (a, b) => a.position === b.position && a.start < b.end && b.start < a.end;

function excerpt(words) {
  return words.length > LONGEST_SHOWN ? `${words.slice(0, LONGEST_SHOWN)}…` : words;
}

// Places in the text itself and on the page, which shows nothing for the first half of a CR LF.
const inText = (shown, unseen) => unseen.reduce((place, one) => (one < place ? place + 1 : place), shown);
const onPage = (place, unseen) => place - unseen.filter((one) => one < place).length;

function selectedSpan(root, unseen) {
  const selection = getSelection();
  if (!selection.rangeCount || selection.isCollapsed) return null;
  const range = selection.getRangeAt(0);
  const text = range.startContainer.parentElement?.closest("[data-text]");
  if (!text || !root.contains(text) || !text.contains(range.endContainer)) return null;
  const position = Number(text.dataset.text);
  const start = inText(lengthUntil(text, range.startContainer, range.startOffset), unseen[position]);
  const end = inText(lengthUntil(text, range.endContainer, range.endOffset), unseen[position]);
  if (end <= start) return null;
  return { position, start, end, note: "", words: excerpt(range.toString()) };
}

// Pieces of the plain view with the number of characters that each stands for. A sign such as "U+200B ×3" stands for 3.
function* pieces(text) {
  const walker = document.createTreeWalker(text.querySelector("pre") ?? text, NodeFilter.SHOW_TEXT);
  for (let node = walker.nextNode(); node; node = walker.nextNode()) {
    const sign = node.parentElement.closest(".invisible-char");
    const count = sign ? Number(sign.textContent.split("×")[1] ?? 1) : [...node.data].length;
    yield { node, count, isSign: Boolean(sign) };
  }
}

function lengthUntil(text, container, offset) {
  const place = document.createRange();
  place.setStart(container, offset);
  let length = 0;
  for (const { node, count, isSign } of pieces(text)) {
    if (node === container) return length + (isSign ? (offset ? count : 0) : [...node.data.slice(0, offset)].length);
    if (place.comparePoint(node, 0) >= 0) return length;
    length += count;
  }
  return length;
}

function rangeOf(root, span, unseen) {
  const { position } = span;
  const [start, end] = [onPage(span.start, unseen), onPage(span.end, unseen)];
  const text = root.querySelector(`[data-text="${position}"]`);
  const range = document.createRange();
  let length = 0;
  let isOpen = false;
  for (const { node, count, isSign } of pieces(text)) {
    const place = (at) => (isSign ? (at > length ? node.data.length : 0) : [...node.data].slice(0, at - length).join("").length);
    if (!isOpen && start < length + count) {
      range.setStart(node, place(start));
      isOpen = true;
    }
    if (isOpen && end <= length + count) {
      range.setEnd(node, place(end));
      return range;
    }
    length += count;
  }
  return null;
}
