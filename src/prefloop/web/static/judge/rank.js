// Several answers in order: cards that are dragged, or moved by keys. The texts stay where they are.

import { followDrag } from "./drag.js";
import * as rankings from "./ranking.js";
import { t } from "./words.js";

const LETTERS = "ABCDEFGHI";
const EXCERPT = 90;

export function openRank(root, { data, changed }) {
  const count = data.num_texts;
  const tiersBox = root.querySelector("#tiers");
  const unrankableBox = root.querySelector("#unrankable");
  const cards = Array.from({ length: count }, (_, position) => card(root, position, data.frozen));
  let ranking = rankings.ranked(count);
  let isTouched = false;
  let isKept = false;
  let current = 0;

  function draw() {
    const before = cards.map((one) => one.getBoundingClientRect());
    const hadFocus = cards.includes(document.activeElement);
    tiersBox.replaceChildren(
      ...ranking.tiers.map((tier, place) => {
        const row = document.createElement("li");
        row.className = tier.length > 1 ? "tier tied" : "tier";
        row.dataset.place = place;
        row.setAttribute("aria-label", t(tier.length > 1 ? "judge.rank_tied" : "judge.rank_place", { place: place + 1 }));
        const number = document.createElement("span");
        number.className = "place-number number";
        number.setAttribute("aria-hidden", "true");
        number.textContent = place + 1;
        const group = document.createElement("div");
        group.append(...tier.map((position) => cards[position]));
        row.append(number, group);
        return row;
      }),
    );
    unrankableBox.querySelector("ul").replaceChildren(
      ...ranking.unrankable.map((position) => {
        const row = document.createElement("li");
        row.append(cards[position]);
        return row;
      }),
    );
    unrankableBox.classList.toggle("empty-zone", ranking.unrankable.length === 0);
    root.querySelector('[data-action="keep_order"]')?.setAttribute("aria-pressed", String(isKept));
    mark();
    if (hadFocus) cards[current].focus({ preventScroll: true });
    glide(before);
  }

  function glide(before) {
    if (matchMedia("(prefers-reduced-motion: reduce)").matches) return;
    cards.forEach((one, position) => {
      const after = one.getBoundingClientRect();
      const [x, y] = [before[position].left - after.left, before[position].top - after.top];
      if (before[position].height && (x || y)) {
        one.animate([{ transform: `translate(${x}px, ${y}px)` }, { transform: "none" }], { duration: 140, easing: "ease-out" });
      }
    });
  }

  function mark() {
    cards.forEach((one, position) => one.classList.toggle("current", position === current));
    for (const text of root.querySelectorAll(".answer")) {
      text.classList.toggle("current", Number(text.dataset.position) === current);
    }
  }

  function become(next) {
    if (data.frozen) return;
    isKept = next === ranking && (isKept || !isTouched);
    ranking = next;
    isTouched = true;
    draw();
    changed("");
    root.querySelector("#moved").textContent = said(current);
  }

  function said(position) {
    const letter = LETTERS[position];
    const at = ranking.tiers.findIndex((tier) => tier.includes(position));
    if (at < 0) return t("judge.moved_unrankable", { letter });
    const others = ranking.tiers[at].filter((one) => one !== position).map((one) => LETTERS[one]);
    return t(others.length ? "judge.moved_tied" : "judge.moved", { letter, place: at + 1, others: others.join(", ") });
  }

  function go(step) {
    const line = rankings.order(ranking);
    const at = line.indexOf(current) + step;
    select(line[Math.max(0, Math.min(count - 1, at))]);
    cards[current].focus({ preventScroll: true });
  }

  function select(position) {
    current = position;
    mark();
    const text = root.querySelector(`.answer[data-position="${position}"]`);
    text?.scrollIntoView({ block: "nearest", behavior: "smooth" });
  }

  // --- dragging ---

  function targetAt(x, y, dragged) {
    const zone = unrankableBox.getBoundingClientRect();
    if (y >= zone.top && y <= zone.bottom && x >= zone.left && x <= zone.right) return { zone: unrankableBox };
    const rows = [...tiersBox.children];
    for (const [place, row] of rows.entries()) {
      const box = row.getBoundingClientRect();
      if (y < box.top) return { before: place, row };
      if (y > box.bottom) continue;
      const isOwn = ranking.tiers[place].length === 1 && ranking.tiers[place][0] === dragged;
      if (isOwn) return {};
      const part = (y - box.top) / box.height;
      if (part < 0.25) return { before: place, row };
      if (part > 0.75) return { before: place + 1, row, isAfter: true };
      return { tie: place, row };
    }
    return { before: rows.length, row: rows.at(-1), isAfter: true };
  }

  function show(target) {
    for (const one of root.querySelectorAll(".drop-before, .drop-after, .drop-tie")) {
      one.classList.remove("drop-before", "drop-after", "drop-tie");
    }
    if (target.zone) target.zone.classList.add("drop-tie");
    else if (target.row) {
      target.row.classList.add("tie" in target ? "drop-tie" : target.isAfter ? "drop-after" : "drop-before");
    }
  }

  if (!data.frozen) {
    cards.forEach((one, position) =>
      followDrag(one, {
        start: () => select(position),
        over: (x, y) => show(targetAt(x, y, position)),
        drop(x, y) {
          const target = targetAt(x, y, position);
          show({});
          if (target.zone && !ranking.unrankable.includes(position)) become(rankings.unrankableToggled(ranking, position));
          else if ("tie" in target) {
            const other = ranking.tiers[target.tie].find((each) => each !== position);
            if (other !== undefined) become(rankings.tiedWith(ranking, position, other));
          } else if ("before" in target) become(rankings.placedAt(ranking, position, target.before));
        },
        cancel: () => show({}),
      }),
    );
  }
  cards.forEach((one, position) => {
    one.addEventListener("click", () => select(position));
    one.addEventListener("focus", () => {
      current = position;
      mark();
    });
  });
  draw();

  return {
    actions: {
      next_card: () => go(1),
      previous_card: () => go(-1),
      move_down: () => become(rankings.moved(ranking, current, true)),
      move_up: () => become(rankings.moved(ranking, current, false)),
      tie_previous: () => become(rankings.tieToggled(ranking, current)),
      toggle_unrankable: () => become(rankings.unrankableToggled(ranking, current)),
      keep_order: () => become(ranking), // as good an answer as any other
    },
    value: () =>
      isTouched ? { groups: ranking.tiers.map((tier) => [...tier]), unrankable: [...ranking.unrankable] } : {},
    restore(value) {
      if (!value.groups) return;
      ranking = { tiers: value.groups.map((group) => [...group]), unrankable: [...(value.unrankable ?? [])] };
      isTouched = true;
      current = rankings.order(ranking)[0];
      draw();
    },
    problem: () => (isTouched ? "" : t("judge.need_order")),
  };
}

function card(root, position, isFrozen) {
  const button = document.createElement("button");
  button.type = "button";
  button.className = "rank-card";
  button.dataset.card = position;
  button.setAttribute("aria-label", t("judge.drag", { letter: LETTERS[position] }));
  const letter = document.createElement("b");
  letter.className = "letter";
  letter.textContent = LETTERS[position];
  const words = document.createElement("span");
  words.className = "excerpt";
  words.dir = "auto";
  words.textContent = root.querySelector(`[data-text="${position}"]`).textContent.trim().slice(0, EXCERPT);
  const grip = document.createElement("span");
  grip.className = "grip";
  grip.hidden = isFrozen;
  button.append(letter, words, grip);
  return button;
}
