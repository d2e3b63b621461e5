// Which answers have been seen to their end: scrolled to, or unfolded.

const ABOVE = 80; // pixels: the letter of an answer and some air

// Marks the texts that fit between the bars, so that they can stay in sight while a longer one is scrolled.
export function watchSizes(root) {
  const bar = root.querySelector("#bar");
  const observer = new ResizeObserver(() => {
    const room = innerHeight - bar.offsetHeight - ABOVE;
    for (const text of root.querySelectorAll("[data-text]")) text.classList.toggle("short", text.offsetHeight < room);
  });
  for (const text of root.querySelectorAll("[data-text]")) observer.observe(text);
  return () => observer.disconnect();
}

export function watchReveal(root, onChange) {
  const unread = new Set([...root.querySelectorAll("[data-end]")].map((one) => Number(one.dataset.end)));
  const bar = root.querySelector("#bar");
  const covered = bar && getComputedStyle(bar).position === "sticky" ? bar.offsetHeight : 0;

  function seen(position) {
    if (unread.delete(position)) onChange();
  }

  const observer = new IntersectionObserver(
    (entries) => {
      for (const entry of entries) {
        const isFolded = entry.target.closest(".folded") !== null;
        if (entry.isIntersecting && !isFolded) seen(Number(entry.target.dataset.end));
      }
    },
    // what the reader has scrolled past counts too: all that lies above
    { rootMargin: `1000000px 0px -${covered}px 0px` },
  );
  for (const end of root.querySelectorAll("[data-end]")) observer.observe(end);

  root.addEventListener("click", (event) => {
    const button = event.target.closest("[data-unfold]");
    if (!button) return;
    const folded = button.closest(".folded");
    folded.classList.remove("folded");
    folded.querySelector(".text").focus({ preventScroll: true });
    button.remove();
    if (folded.dataset.position) seen(Number(folded.dataset.position));
  });

  return { unread: () => [...unread].sort(), stop: () => observer.disconnect() };
}
