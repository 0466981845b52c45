// What the scores of each metric are, in one sentence each.

export const METRICS = {
  dot: {
    title: "Influence",
    says: "How much training on the row changed the likelihood of this answer.",
    linear: true,
  },
  cosine: {
    title: "Cosine",
    says: "Influence without the size of the two gradients: long or surprising rows lose their advantage.",
    linear: true,
  },
  "per-token": {
    title: "Per token",
    says: "Influence divided by the scored tokens of both texts.",
    linear: true,
  },
  decorrelated: {
    title: "Decorrelated",
    says: "Influence in which what many rows share counts less.",
    linear: true,
  },
  hybrid: {
    title: "Hybrid",
    says: "Shared words, cosine and state together: best to find where an answer came from, silent on what a row did.",
    linear: false,
  },
  lexical: {
    title: "Words",
    says: "Shared words alone (BM25): the model has no part in it.",
    linear: false,
  },
};
