// One's own answers: times in the reader's way, and the arrow keys go from answer to answer.

for (const time of document.querySelectorAll("time[data-time]")) {
  const when = new Date(Number(time.dataset.time));
  time.dateTime = when.toISOString();
  time.textContent = when.toLocaleString(document.documentElement.lang, { dateStyle: "medium", timeStyle: "short" });
}

const answers = [...document.querySelectorAll(".own-answer")];
document.getElementById("own-answers").addEventListener("keydown", (event) => {
  const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
  const place = answers.indexOf(event.target.closest(".own-answer"));
  if (!step || place < 0 || event.ctrlKey || event.altKey || event.metaKey) return;
  event.preventDefault();
  answers[Math.max(0, Math.min(answers.length - 1, place + step))].focus();
});
answers[0]?.focus({ preventScroll: true });
