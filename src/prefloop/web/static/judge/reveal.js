// Which answers have been seen to their end: scrolled to, or unfolded.

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
    const answer = button.closest(".answer");
    answer.classList.remove("folded");
    answer.querySelector(".text").focus({ preventScroll: true });
    button.remove();
    seen(Number(answer.dataset.position));
  });

  return { unread: () => [...unread].sort(), stop: () => observer.disconnect() };
}
