"""General prompts, written for this project: everyday questions that no task of an adaptation is about.

They show whether a model still talks as it did before it was adapted.
"""

PROMPTS: tuple[str, ...] = (
    "Explain in two sentences why the sky looks blue.",
    "What should I check before I buy a used bicycle?",
    "Write a short poem about rain on a tin roof.",
    "How do I boil an egg so that the yolk stays soft?",
    "Give me three ideas for a birthday party in a small flat.",
    "What is the difference between weather and climate?",
    "Write a polite letter to a neighbour about loud music.",
    "Name four things that a hiker should carry in the mountains.",
    "Why do cats purr?",
    "Summarise what a library does for a town.",
    "How can I remember the names of people that I meet?",
    "Tell me a story that starts with a lost key.",
    "What are the advantages of taking the train instead of the car?",
    "Describe the taste of a lemon to someone who never had one.",
    "How does a bill become a law in a parliament?",
    "What is a good way to learn twenty words of a new language a day?",
    "Explain to a child how a seed becomes a tree.",
    "Which questions should I ask in a job interview?",
    "Write one paragraph about the sea at night.",
    "How do vaccines protect a person?",
    "Give advice to somebody who sleeps badly.",
    "What does a conductor of an orchestra do?",
    "List the steps to change a flat tyre.",
    "Why is it cold on high mountains although they are nearer to the sun?",
)
