// Pages of leads: "/" goes to the search field, F to the filters.

import { isTyping } from "./judge/keys.js";

const PLACES = { "/": "[data-search]", f: ".filters select" };

document.addEventListener("keydown", (event) => {
  const wanted = PLACES[event.key];
  if (!wanted || event.isComposing || event.ctrlKey || event.altKey || event.metaKey || isTyping(event.target)) return;
  const field = document.querySelector(wanted);
  if (!field) return;
  event.preventDefault();
  field.focus();
  if (field.matches("input")) field.select();
});

document.querySelector(".tabs [aria-current]")?.scrollIntoView({ block: "nearest", inline: "center" });
